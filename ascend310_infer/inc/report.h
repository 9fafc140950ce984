// Times of the pipeline's stages, and JSON texts.
#ifndef ASCEND310_INFER_INC_REPORT_H_
#define ASCEND310_INFER_INC_REPORT_H_

#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

namespace mindseg {

using Clock = std::chrono::steady_clock;
using Json = nlohmann::ordered_json;

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

Json ToJson(const Latency& latency);

// Four digits behind the point: more would only be noise in a report.
double Rounded(double number);

// One line. Bytes that are not UTF-8 become U+FFFD, since file names may hold anything.
std::string JsonText(const Json& json);

}  // namespace mindseg

#endif  // ASCEND310_INFER_INC_REPORT_H_
