# The front door. `make run` serves the embedded model, `make test` runs every test.
# Each target first installs the Debian 12 packages it lacks; LACUNA_NO_INSTALL=1 only names them.

SHELL := /bin/bash
JOBS ?= $(shell nproc)

BUILD_PACKAGES := g++ cmake ninja-build ccache mold pkg-config libdnnl-dev libhwy-dev \
  libboost1.81-dev libssl-dev libgrpc++-dev libprotobuf-dev protobuf-compiler \
  protobuf-compiler-grpc nlohmann-json3-dev libspdlog-dev libcli11-dev prometheus-cpp-dev \
  libonig-dev libicu-dev zlib1g-dev
TEST_PACKAGES := libgtest-dev libgmock-dev clang libclang-rt-14-dev curl
LINT_PACKAGES := clang-format clang-tidy
# Any node and npm on the PATH will do; Debian's are taken only when there are none.
NODE_PACKAGES := $(if $(shell command -v npm),,nodejs npm)

# $(call packages,LIST): installs those of LIST that are missing, as root or through sudo.
define packages
@missing=$$(for p in $(1); do \
    dpkg-query -W -f='$${db:Status-Status}\n' $$p 2>/dev/null | grep -qx installed || echo $$p; \
  done | xargs); \
if [ -n "$$missing" ]; then \
  if [ -n "$$LACUNA_NO_INSTALL" ]; then echo "missing Debian packages: $$missing"; exit 1; fi; \
  root=$$([ $$(id -u) = 0 ] || echo sudo); \
  echo "installing Debian packages: $$missing"; \
  $$root apt-get update -q && \
  $$root env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
fi
endef

.PHONY: help build run test test-unit test-e2e test-sanitize test-fuzz test-cuda lint format \
  packages packages-test

help:  ## What each target does
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

packages:
	$(call packages,$(BUILD_PACKAGES))

packages-test: packages
	$(call packages,$(TEST_PACKAGES) $(NODE_PACKAGES))

build: packages  ## Release build into build/release
	cmake --preset release -DLACUNA_TESTS=OFF
	cmake --build build/release -j $(JOBS) --target lacuna

run: build  ## Serve the embedded model; ARGS="--port 8000 ..." go to `lacuna serve`
	build/release/lacuna serve $(ARGS)

test: test-unit test-e2e test-sanitize test-fuzz  ## Every test

test-unit: packages-test  ## Release build and its unit tests
	cmake --preset test
	cmake --build build/test -j $(JOBS)
	ctest --test-dir build/test -j $(JOBS) --output-on-failure

test-e2e: packages-test  ## The server as its users see it: real HTTP and gRPC clients
	cmake --preset test
	cmake --build build/test -j $(JOBS) --target lacuna
	cd tests/e2e && npm ci --no-audit --no-fund --loglevel=error
	LACUNA_BIN=$(CURDIR)/build/test/lacuna node --test tests/e2e/*.test.mjs

test-sanitize: packages-test  ## Unit tests under ASan+UBSan, the engine loop under TSan
	cmake --preset sanitize
	cmake --build build/sanitize -j $(JOBS)
	ctest --test-dir build/sanitize -j $(JOBS) --output-on-failure
	cmake --preset tsan
	cmake --build build/tsan -j $(JOBS)
	ctest --test-dir build/tsan -j $(JOBS) --output-on-failure

test-fuzz: packages-test  ## Each fuzz target for FUZZ_SECONDS (10) from its corpus
	cmake --preset sanitize
	cmake --build build/sanitize -j $(JOBS) --target fuzzers
	tests/fuzz/run.sh build/sanitize $${FUZZ_SECONDS:-10}

# The generation of this machine's GPU: machine code where there are kernels for it, else PTX.
CUDA_ARCHS = $(shell nvidia-smi --query-gpu=compute_cap --format=csv,noheader 2>/dev/null | \
  sed -n '1{s/^9\.0$$/sm_90a/;s/^8\..*/sm_80/;s/^[0-9].*/compute_90/;p}')

test-cuda: packages-test  ## Tests on the GPU of this machine; a skipped one is a failure
	cmake --preset cuda -DLACUNA_TESTS=ON $(if $(CUDA_ARCHS),-DLACUNA_CUDA_ARCHS=$(CUDA_ARCHS))
	cmake --build build/cuda -j $(JOBS)
	LACUNA_REQUIRE_CUDA=1 ctest --test-dir build/cuda -L cuda --output-on-failure

# SINCE=COMMIT: only what was changed since then. The whole tree takes two cores 20 minutes.
LISTED = $(if $(SINCE),git diff --name-only --diff-filter=d $(SINCE),git ls-files)
TIDY = xargs -r -P $(JOBS) -n 2 clang-tidy --quiet --warnings-as-errors='*' -p
PROTO_HEADERS := generated/proto/lacuna/v1/lacuna.pb.h

lint: packages-test  ## clang-format and clang-tidy over the tree, or over what changed SINCE=COMMIT
	$(call packages,$(LINT_PACKAGES))
	$(LISTED) -- '*.h' '*.cc' '*.cu' '*.cuh' | xargs -r clang-format --dry-run --Werror
	cmake --preset sanitize
	cmake --build build/sanitize --target $(PROTO_HEADERS)
	$(LISTED) -- 'kernels/*.cc' 'kvcache/*.cc' 'engine/*.cc' 'server/*.cc' 'bench/*.cc' | \
	  grep -Ev '^(kernels/cuda|bench/gpu)/' | $(TIDY) build/sanitize
	# The host code of the CUDA backend, where there is a toolkit to build it.
	cmake --preset test
	if grep -q kernels/cuda/matmul/cublaslt.cc build/test/compile_commands.json; then \
	  $(LISTED) -- 'kernels/cuda/*.cc' 'bench/gpu/*.cc' | $(TIDY) build/test; fi

format:  ## Formats every source file
	$(call packages,$(LINT_PACKAGES))
	git ls-files '*.h' '*.cc' '*.cu' '*.cuh' | xargs clang-format -i
