#include "server/command_line.h"

#include <fstream>
#include <iostream>
#include <memory>

#include "bench/load/bench_serve.h"
#include "server/commands/bench_offline_command.h"
#include "server/commands/calibrate_command.h"
#include "server/commands/config_commands.h"
#include "server/commands/eval_command.h"
#include "server/commands/inspect_command.h"
#include "server/commands/make_suite_command.h"
#include "server/commands/profiles.h"
#include "server/commands/serve_command.h"
#include "server/commands/tokenize_command.h"
#include "server/commands/verify_command.h"

namespace lacuna::server {
namespace {

// The options live in the callback, which CLI11 keeps as long as the subcommand.
template <typename Options, typename Run>
void OnParsed(CLI::App* command, std::shared_ptr<Options> options, int& exit_code, Run run) {
  command->callback(
      [options, &exit_code, run] { exit_code = run(*options, std::cout, std::cerr); });
}

void AddDeviceFlags(CLI::App* command, std::string& device, std::string& precision) {
  command->add_option("--device", device, "Where to run; auto: on the GPU if one works")
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}));
  command->add_option("--precision", precision, "Type of weights and KV; f16 on a GPU")
      ->check(CLI::IsMember({"bf16", "f16", "fp32"}));
}

void AddDeviceFlags(CLI::App* command, DeviceOptions& device) {
  AddDeviceFlags(command, device.device, device.precision);
  command->add_option("--threads", device.threads, "CPU threads that compute; 0: one per processor")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
}

void AddServe(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<ServeOptions>();
  CLI::App* command = app.add_subcommand("serve", "Serve a model over HTTP and gRPC");
  command->add_option("--model", options->model,
                      "Folder of a Hugging Face model; without it the embedded recall-12m");
  command->add_option("--config", options->config,
                      "Config file (configs/serve.json lists all keys)");
  command
      ->add_option("--load-format", options->load_format,
                   "dummy: random weights of the shape that --model names (configs/shapes)")
      ->check(CLI::IsMember({"auto", "dummy"}));
  AddDeviceFlags(command, options->device, options->precision);
  command->add_option("--sparse-profile", options->sparse_profile,
                      "Sparse attention of requests that name no profile (see `lacuna profiles`)");
  command->add_option("--host", options->host, "Address of both listeners [127.0.0.1]");
  command->add_option("--port", options->port, "HTTP port; 0 picks a free one [8000]")
      ->check(CLI::Range(0, 65535));
  command->add_option("--grpc-port", options->grpc_port, "gRPC port; 0 picks a free one [50051]")
      ->check(CLI::Range(0, 65535));
  command->add_option("--set", options->overrides, "A config key, as section.key=value; may repeat")
      ->allow_extra_args(false);
  OnParsed(command, options, exit_code, RunServe);
}

void AddVerify(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<VerifyOptions>();
  CLI::App* command =
      app.add_subcommand("verify", "Compare a model with logits of another implementation");
  command->add_option("--model", options->model, "Folder of a Hugging Face model")->required();
  command
      ->add_option("--expected", options->expected, "safetensors with input_ids, logits and greedy")
      ->required();
  AddDeviceFlags(command, options->device);
  OnParsed(command, options, exit_code, RunVerify);
}

void AddInspect(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<InspectOptions>();
  CLI::App* command =
      app.add_subcommand("inspect", "Architecture, shapes, bytes and KV bytes per token");
  command->add_option("--model", options->model, "Folder of a Hugging Face model")->required();
  OnParsed(command, options, exit_code, RunInspect);
}

void AddTokenize(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<TokenizeOptions>();
  CLI::App* command = app.add_subcommand("tokenize", "Check a tokenizer against known pairs");
  command->add_option("--tokenizer", options->tokenizer, "tokenizer.json")->required();
  command->add_option("--pairs", options->pairs, R"(Lines of {"text": ..., "ids": [...]})")
      ->required();
  OnParsed(command, options, exit_code, RunTokenize);
}

void AddBench(CLI::App& app, int& exit_code) {
  CLI::App* bench = app.add_subcommand("bench", "Measure speed");
  bench->require_subcommand(1);

  auto offline = std::make_shared<BenchOfflineOptions>();
  CLI::App* command = bench->add_subcommand("offline", "A model without a server");
  CLI::Option_group* what = command->add_option_group("what", "One of");
  what->add_option("--shape", offline->shape, "A config.json: random weights of that shape");
  what->add_option("--model", offline->model, "Folder of a Hugging Face model");
  what->require_option(1);
  command->add_flag("--dummy", offline->dummy, "Random weights for --model too");
  command->add_option("--sequences", offline->sequences, "Sequences that decode together")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_flag("--engine", offline->engine,
                    "Through the server's engine: --sequences prompts of --depth random tokens");
  command->add_flag("!--no-graphs", offline->graphs, "Decode kernel by kernel on a GPU");
  command->add_option("--depth", offline->depth, "Tokens cached before the measurement")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command->add_option("--prompt", offline->prompt, "Tokens to prefill; 0: none")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command->add_option("--generate", offline->generate, "Tokens to decode; 0: none")
      ->check(CLI::Range(0, 1 << 24))
      ->capture_default_str();
  command->add_option("--step-tokens", offline->step_tokens, "Tokens of one prefill step")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--sparse-profile", offline->sparse_profile,
                      "Sparse attention by this profile (see `lacuna profiles`)");
  command->add_option("--set", offline->dials, "A dial of the profile, as dial=number; may repeat")
      ->allow_extra_args(false);
  command->add_option("--profiles", offline->profile_dir, "Folder of further profiles");
  command->add_option("--artefacts", offline->artefacts,
                      "What `lacuna calibrate` measured; for random weights it is made up");
  command->add_flag("--compare-dense", offline->compare_dense,
                    "Dense attention in the same run, beside the profile");
  command->add_flag("--drop-streaming", offline->drop_streaming,
                    "Streaming heads keep only what they see");
  command
      ->add_option("--dense-tflops", offline->dense_tflops,
                   "TFLOP/s of dense attention, to compute the time that it would take")
      ->check(CLI::Range(0.0, 1e6));
  command->add_option("--json", offline->json, "File to write the result to");
  AddDeviceFlags(command, offline->device);
  OnParsed(command, offline, exit_code, RunBenchOffline);

  auto serve = std::make_shared<bench::BenchServeOptions>();
  command = bench->add_subcommand("serve", "Load test of a running server");
  command->add_option("--config", serve->config_path, "Load test (configs/bench/*.json)")
      ->required();
  command->add_option("--url", serve->url, "http://host:port of the server")->required();
  command->add_option("--json", serve->json_path, "File to write the report to");
  command->add_flag("--quiet", serve->quiet, "No progress bar");
  OnParsed(command, serve, exit_code, bench::RunBenchServe);
}

void AddConfig(CLI::App& app, int& exit_code) {
  auto check = std::make_shared<CheckConfigOptions>();
  CLI::App* command = app.add_subcommand("check-config", "Check a config file, all errors at once");
  command->add_option("FILE", check->file, "Config file")->required();
  OnParsed(command, check, exit_code, RunCheckConfig);

  auto print = std::make_shared<PrintConfigOptions>();
  command =
      app.add_subcommand("print-config", "The effective config, with the meaning of each key");
  command->add_option("--config", print->config, "Config file; without it the defaults");
  command->add_option("--set", print->overrides, "A config key, as section.key=value; may repeat")
      ->allow_extra_args(false);
  command->add_flag("--reference", print->reference, "The text of configs/serve.json instead");
  OnParsed(command, print, exit_code, RunPrintConfig);
}

void AddProfiles(CLI::App& app, int& exit_code) {
  auto list = std::make_shared<ProfilesOptions>();
  CLI::App* command = app.add_subcommand("profiles", "The sparse-attention profiles");
  command->add_option("--profiles", list->folder, "Folder of further profiles");
  command->add_flag("--schema", list->schema, "The text of configs/sparse/schema.json instead");
  command->add_flag("--reference", list->reference, "The text of docs/profiles.md instead");

  auto show = std::make_shared<ShowProfileOptions>();
  CLI::App* one = command->add_subcommand("show", "A profile and its plan for a model");
  one->add_option("NAME", show->name, "Profile")->required();
  one->add_option("--profiles", show->folder, "Folder of further profiles");
  one->add_option("--model", show->model,
                  "Folder of a Hugging Face model, or a config.json; without it recall-12m");
  one->add_option("--artefacts", show->artefacts, "File of what was measured of the model");
  one->add_option("--page-tokens", show->page_tokens, "Tokens of a KV page")
      ->check(CLI::IsMember({16, 64}))
      ->capture_default_str();
  one->add_option("--set", show->dials, "A dial, as name=number; may repeat")
      ->allow_extra_args(false);
  OnParsed(one, show, exit_code, RunShowProfile);
  command->callback([list, one, &exit_code] {
    if (!one->parsed()) exit_code = RunProfiles(*list, std::cout, std::cerr);
  });
}

void AddCalibrate(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<CalibrateCommandOptions>();
  CLI::App* command = app.add_subcommand(
      "calibrate",
      "Measure a model for sparse profiles: head roles, patterns, spans, channels, ...");
  command->footer(CalibrateDialHelp());
  command->add_option("--model", options->model,
                      "Folder of a Hugging Face model; without it the embedded recall-12m");
  command
      ->add_option("--method", options->method,
                   "A profile or a method (minference, duoattention, ...), a table, or all")
      ->capture_default_str();
  command
      ->add_option(
          "--data", options->data,
          R"(Sample prompts: .jsonl with {"messages" or "prompt", "answers"}, or .txt; may )"
          "be .gz")
      ->required();
  command
      ->add_option(
          "--out", options->out,
          "File of the tables; lacuna-sparse.json in the model's folder is found by itself. "
          "Tables that are in it and not made anew stay")
      ->required();
  command->add_option("--prompts", options->prompts, "Only the first so many prompts; 0: all")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
  command->add_option("--tokens", options->tokens, "Longer prompts are left out")
      ->check(CLI::Range(256, 1 << 24))
      ->capture_default_str();
  command->add_option("--set", options->set, "A number, as name=value; may repeat; see below")
      ->allow_extra_args(false);
  command->add_option("--precision", options->precision, "Type of weights and KV, on the CPU")
      ->check(CLI::IsMember({"bf16", "fp32"}))
      ->capture_default_str();
  command->add_option("--threads", options->threads, "CPU threads; 0: one per processor")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  command->add_flag("--quiet", options->quiet, "No progress bar");
  OnParsed(command, options, exit_code, RunCalibrate);
}

void AddEval(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<EvalOptions>();
  CLI::App* command = app.add_subcommand(
      "eval", "Accuracy, density and speed of sparse profiles beside dense attention");
  command->add_option("--suite", options->suite, "Questions: .jsonl or .jsonl.gz (make-suite)")
      ->required();
  command->add_option("--profiles", options->profiles, "Names with commas, or all; dense is added")
      ->delimiter(',')
      ->required();
  command
      ->add_option("--budget-fractions", options->fractions,
                   "Each profile also at these shares of the tokens, as 0.1,0.05")
      ->delimiter(',');
  command->add_option("--lengths", options->lengths, "Only prompts of these context_tokens")
      ->delimiter(',');
  command->add_option("--tasks", options->tasks, "Only these tasks")->delimiter(',');
  command->add_option("--limit", options->limit, "Most questions, from each task in turn; 0: all")
      ->check(CLI::Range(0, 1 << 24));
  command->add_option("--reference", options->reference,
                      R"({"TASK@TOKENS": share right}: exit 1 when dense is 2 points below it)");
  command->add_option("--out", options->out,
                      "Folder for report.json, report.md, index.html and answers.jsonl");
  command->add_flag("--resume", options->resume, "Ask only what the folder's answers lack");
  command->add_option("--max-tokens", options->max_tokens, "Of an answer")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  command->add_option("--concurrency", options->concurrency, "Prompts at once; times need 1")
      ->check(CLI::Range(1, 256))
      ->capture_default_str();
  command->add_flag("--quiet", options->quiet, "No progress bar");
  command->add_option("--url", options->url, "http://host:port of a server that runs");
  command->add_option("--api-key-env", options->api_key_env, "Variable that holds its key");
  command->add_option("--model", options->model,
                      "Without --url a server is started: folder of its model [recall-12m]");
  command->add_option("--config", options->config, "Its config file");
  AddDeviceFlags(command, options->device, options->precision);
  command->add_option("--set", options->overrides, "A key of its config; may repeat")
      ->allow_extra_args(false);
  OnParsed(command, options, exit_code, RunEvalCommand);
}

void AddMakeSuite(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<MakeSuiteOptions>();
  CLI::App* command = app.add_subcommand("make-suite", "Fresh questions for eval, over any text");
  command->add_option("--text", options->texts, "Files of text that facts are hidden in")
      ->required();
  command->add_option("--out", options->out, ".jsonl or .jsonl.gz")->required();
  command->add_option("--seed", options->seed, "Another seed, other questions")
      ->capture_default_str();
  command->add_option("--lengths", options->lengths, "Tokens of prompts")
      ->delimiter(',')
      ->capture_default_str();
  command
      ->add_option("--tasks", options->tasks,
                   "Of needle,multi_key,multi_value,key_value,lines,bios [all]")
      ->delimiter(',');
  command->add_option("--count", options->count, "Questions per task and length")
      ->check(CLI::Range(1, 100'000))
      ->capture_default_str();
  command->add_option("--model", options->model,
                      "Folder whose tokenizer measures; without it the embedded recall-12m");
  command->add_flag("--quiet", options->quiet, "No progress");
  OnParsed(command, options, exit_code, RunMakeSuite);
}

}  // namespace

void AddCommands(CLI::App& app, int& exit_code) {
  AddServe(app, exit_code);
  AddBench(app, exit_code);
  AddVerify(app, exit_code);
  AddInspect(app, exit_code);
  AddTokenize(app, exit_code);
  AddConfig(app, exit_code);
  AddProfiles(app, exit_code);
  AddCalibrate(app, exit_code);
  AddEval(app, exit_code);
  AddMakeSuite(app, exit_code);
}

}  // namespace lacuna::server
