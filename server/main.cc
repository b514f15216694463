// lacuna: the command line. Each subcommand is one file in server/commands (or bench/load).
#include <spdlog/sinks/stdout_sinks.h>
#include <spdlog/spdlog.h>

#include <CLI/CLI.hpp>
#include <cstdlib>
#include <iostream>
#include <memory>

#include "server/command_line.h"
#include "server/commands/version.h"

int main(int argc, char** argv) {
  CLI::App app("Lacuna: an LLM inference server with a sparse-attention runtime");
  app.set_version_flag("--version", std::string(lacuna::server::kVersion));
  app.require_subcommand(1);
  // Standard output is for what a command was asked for.
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "lacuna", std::make_shared<spdlog::sinks::stderr_sink_mt>()));
  int exit_code = 0;
  lacuna::server::AddCommands(app, exit_code);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : 2;  // CLI11 has told why
  }
  return exit_code;
}
