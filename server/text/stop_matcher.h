// StopMatcher: finds the stop strings of a request in streamed text, across any piece borders.
//
// Owned by one choice of one response; one thread. The first stop string to be complete ends the
// text (of several that end on the same byte, the longest), so the result does not depend on how
// the text was cut into pieces.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace lacuna::server {

class StopMatcher final {
 public:
  // Empty stop strings are ignored. `include_stop` leaves the matched string in the text.
  explicit StopMatcher(std::vector<std::string> stops, bool include_stop = false);

  struct Output {
    std::string text;      // safe to send
    bool stopped = false;  // true once a stop string was found; all later text is dropped
    std::string matched;   // the stop string
  };
  // Holds back the longest suffix that may begin a stop string. O(bytes * stops), amortised.
  Output Push(std::string_view piece);
  // The held text, once no more will come.
  Output Flush();

 private:
  struct Stop {
    std::string text;
    std::vector<size_t> border;  // Knuth-Morris-Pratt: longest proper border of text[0, i]
    size_t matched_bytes = 0;    // length of the prefix of `text` that ends the input so far
  };
  // Advances one stop by one byte; true when it is complete.
  static bool Advance(Stop& stop, char byte);

  std::vector<Stop> stops_;
  bool include_stop_;
  bool stopped_ = false;
  std::string matched_;
  std::string held_;
};

}  // namespace lacuna::server
