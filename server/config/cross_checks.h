// What no single key can tell: contradictions between keys, each reported under the key that is
// easier to change. Only for a config whose every value is in its own bounds.
#pragma once

#include "kernels/core/field_reader.h"
#include "server/config/server_config.h"

namespace lacuna::server {

void CheckAcrossKeys(const ServerConfig& config, ConfigErrors& errors);

}  // namespace lacuna::server
