// The subcommands' flags: command-line words to the option structs of server/commands.
#pragma once

#include <CLI/CLI.hpp>

namespace lacuna::server {

// Adds every subcommand; the one that the line names runs in its callback and sets `exit_code`.
void AddCommands(CLI::App& app, int& exit_code);

}  // namespace lacuna::server
