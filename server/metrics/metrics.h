// Metrics: the Prometheus registry of the server. Engine figures are read at each scrape; figures
// of requests are observed where their outcome is read. No label ever holds a request's data.
//
// Owned by the server; safe on any thread. Names: metric_table.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "engine/event.h"
#include "server/metrics/engine_collector.h"

namespace lacuna::server {

enum class EndReason { kStop, kLength, kAbort, kError };

class Metrics final {
 public:
  // `read` is called at each scrape, on the scraping thread.
  Metrics(std::string model_name, std::function<EngineReading()> read);
  ~Metrics();

  // One choice ended. `usage` and `timing` are the engine's.
  void ObserveEnd(EndReason reason, const engine::Usage& usage, const engine::Timing& timing);
  // One choice was dropped before its end.
  void ObserveAbort();
  void ObserveInterToken(double seconds);

  // `handler`: a pattern of the route table or "other"; `method`: a verb of the table or "other".
  void ObserveHttp(std::string_view handler, std::string_view method, int status);
  void AddConnections(int delta);
  void SetReady(bool ready);

  // The text exposition format, version 0.0.4.
  std::string Scrape() const;

 private:
  struct Registry;
  const std::unique_ptr<Registry> registry_;
};

}  // namespace lacuna::server
