// Times and their JSON.
#ifndef ASCEND310_INFER_INC_REPORT_H_
#define ASCEND310_INFER_INC_REPORT_H_

#include <chrono>
#include <cstdint>
#include <string>
#include <vector>

namespace segment {

using Clock = std::chrono::steady_clock;

inline double MillisecondsSince(Clock::time_point start) {
  return std::chrono::duration<double, std::milli>(Clock::now() - start).count();
}

struct Latency {
  double min = 0;
  double mean = 0;
  double median = 0;
  double p99 = 0;  // nearest rank
};

// All zero for no samples.
Latency Summarize(std::vector<double> milliseconds);

// Writes one JSON object, member by member, in order.
class JsonObject {
 public:
  JsonObject& Add(const std::string& key, const std::string& text);
  JsonObject& Add(const std::string& key, const char* text) { return Add(key, std::string(text)); }
  JsonObject& Add(const std::string& key, int64_t number);
  JsonObject& Add(const std::string& key, double number);
  JsonObject& Add(const std::string& key, bool value);
  JsonObject& Add(const std::string& key, const Latency& latency);
  JsonObject& AddRaw(const std::string& key, const std::string& json);
  std::string Text() const { return "{" + members_ + "}"; }

 private:
  std::string members_;
};

std::string JsonArray(const std::vector<std::string>& json_values);

// A JSON string; bytes that are not UTF-8 become U+FFFD, since file names may hold anything.
std::string JsonQuote(const std::string& text);

}  // namespace segment

#endif  // ASCEND310_INFER_INC_REPORT_H_
