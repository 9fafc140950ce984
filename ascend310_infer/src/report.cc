#include "inc/report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

namespace segment {
namespace {

// Length of the valid UTF-8 sequence at `text[i]`, or 0.
size_t Utf8Length(const std::string& text, size_t i) {
  const auto byte = [&text](size_t k) { return k < text.size() ? static_cast<unsigned char>(text[k]) : 0u; };
  const unsigned lead = byte(i);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : 2;
  if (lead < 0xc2 || lead > 0xf4) return 0;
  for (size_t k = 1; k < length; ++k) {
    if ((byte(i + k) & 0xc0u) != 0x80u) return 0;
  }
  const unsigned second = byte(i + 1);
  if ((lead == 0xe0 && second < 0xa0) || (lead == 0xed && second > 0x9f)) return 0;  // overlong, surrogate
  if ((lead == 0xf0 && second < 0x90) || (lead == 0xf4 && second > 0x8f)) return 0;  // overlong, over U+10FFFF
  return length;
}

}  // namespace

Latency Summarize(std::vector<double> milliseconds) {
  Latency latency;
  if (milliseconds.empty()) return latency;
  std::sort(milliseconds.begin(), milliseconds.end());
  const size_t n = milliseconds.size();
  latency.min = milliseconds.front();
  latency.mean = std::accumulate(milliseconds.begin(), milliseconds.end(), 0.0) / static_cast<double>(n);
  latency.median = (milliseconds[(n - 1) / 2] + milliseconds[n / 2]) / 2;
  latency.p99 = milliseconds[static_cast<size_t>(std::ceil(0.99 * static_cast<double>(n))) - 1];
  return latency;
}

std::string JsonQuote(const std::string& text) {
  std::string json = "\"";
  for (size_t i = 0; i < text.size();) {
    const size_t length = Utf8Length(text, i);
    const auto c = static_cast<unsigned char>(text[i]);
    if (length == 0) {
      json += "\\ufffd";
    } else if (c == '"' || c == '\\') {
      json += {'\\', text[i]};
    } else if (c < 0x20) {
      char escape[8];
      std::snprintf(escape, sizeof(escape), "\\u%04x", c);
      json += escape;
    } else {
      json += text.substr(i, length);
    }
    i += length ? length : 1;
  }
  return json + "\"";
}

std::string JsonArray(const std::vector<std::string>& json_values) {
  std::string json;
  for (const std::string& value : json_values) json += (json.empty() ? "" : ", ") + value;
  return "[" + json + "]";
}

JsonObject& JsonObject::AddRaw(const std::string& key, const std::string& json) {
  members_ += (members_.empty() ? "" : ", ") + JsonQuote(key) + ": " + json;
  return *this;
}

JsonObject& JsonObject::Add(const std::string& key, const std::string& text) { return AddRaw(key, JsonQuote(text)); }

JsonObject& JsonObject::Add(const std::string& key, int64_t number) { return AddRaw(key, std::to_string(number)); }

JsonObject& JsonObject::Add(const std::string& key, bool value) { return AddRaw(key, value ? "true" : "false"); }

JsonObject& JsonObject::Add(const std::string& key, double number) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.4f", number);
  return AddRaw(key, text);
}

JsonObject& JsonObject::Add(const std::string& key, const Latency& latency) {
  JsonObject object;
  object.Add("min", latency.min).Add("mean", latency.mean).Add("median", latency.median).Add("p99", latency.p99);
  return AddRaw(key, object.Text());
}

}  // namespace segment
