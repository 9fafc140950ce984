#include "inc/report.h"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace mindseg {

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

double Rounded(double number) { return std::round(number * 1e4) / 1e4; }

Json ToJson(const Latency& latency) {
  return {{"min", Rounded(latency.min)},
          {"mean", Rounded(latency.mean)},
          {"median", Rounded(latency.median)},
          {"p99", Rounded(latency.p99)}};
}

std::string JsonText(const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); }

}  // namespace mindseg
