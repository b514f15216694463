#include "server/metrics/metric_table.h"

#include <array>

namespace lacuna::server {
namespace {

using I = MetricId;
constexpr MetricKind kC = MetricKind::kCounter;
constexpr MetricKind kG = MetricKind::kGauge;
constexpr MetricKind kH = MetricKind::kHistogram;

constexpr std::array kTable = {
    MetricRow{I::kRunning, kG, "vllm:num_requests_running", "", "Requests that hold pages."},
    MetricRow{I::kWaiting, kG, "vllm:num_requests_waiting", "", "Requests in the queue."},
    MetricRow{I::kKvUsage, kG, "vllm:kv_cache_usage_perc", "",
              "Used share of the fullest page pool, 0 to 1; cached pages count as free."},
    MetricRow{I::kCacheConfig, kG, "vllm:cache_config_info", "block_size,num_gpu_blocks",
              "1; the labels hold the page size in tokens and the pages of the first pool."},
    MetricRow{I::kPromptTokens, kC, "vllm:prompt_tokens_total", "", "Prompt tokens processed."},
    MetricRow{I::kGenerationTokens, kC, "vllm:generation_tokens_total", "", "Tokens generated."},
    MetricRow{I::kRequestSuccess, kC, "vllm:request_success_total", "finished_reason",
              "Choices that ended: stop, length, abort (the caller went away), error."},
    MetricRow{I::kPreemptions, kC, "vllm:num_preemptions_total", "",
              "Sequences stopped to free their pages, and run again later."},
    MetricRow{I::kPrefixQueries, kC, "vllm:prefix_cache_queries_total", "",
              "Prompt tokens looked up in the prefix cache."},
    MetricRow{I::kPrefixHits, kC, "vllm:prefix_cache_hits_total", "",
              "Prompt tokens found in the prefix cache."},
    MetricRow{I::kTimeToFirstToken, kH, "vllm:time_to_first_token_seconds", "",
              "From submit to the first token."},
    MetricRow{I::kInterToken, kH, "vllm:inter_token_latency_seconds", "",
              "Between two tokens of one choice, as the server reads them."},
    MetricRow{I::kTimePerOutputToken, kH, "vllm:request_time_per_output_token_seconds", "",
              "Mean time of a choice's tokens after the first."},
    MetricRow{I::kEndToEnd, kH, "vllm:e2e_request_latency_seconds", "", "From submit to the end."},
    MetricRow{I::kQueueTime, kH, "vllm:request_queue_time_seconds", "",
              "From submit to admission."},
    MetricRow{I::kPrefillTime, kH, "vllm:request_prefill_time_seconds", "",
              "From admission to the first token."},
    MetricRow{I::kDecodeTime, kH, "vllm:request_decode_time_seconds", "",
              "From the first token to the end."},
    MetricRow{I::kInferenceTime, kH, "vllm:request_inference_time_seconds", "",
              "From admission to the end."},
    MetricRow{I::kRequestPromptTokens, kH, "vllm:request_prompt_tokens", "",
              "Prompt tokens of a request."},
    MetricRow{I::kRequestGenerationTokens, kH, "vllm:request_generation_tokens", "",
              "Tokens generated for a request."},
    MetricRow{I::kKvPages, kG, "lacuna_kv_pages", "group,state",
              "Pages by KvGroup and state: free, used, cached; they add up to total."},
    MetricRow{I::kWaitingTokens, kG, "lacuna_waiting_tokens", "",
              "Prompt tokens of the queued requests."},
    MetricRow{I::kSteps, kC, "lacuna_steps_total", "", "Steps of the engine."},
    MetricRow{I::kGraphSteps, kC, "lacuna_graph_steps_total", "",
              "Steps launched as one recorded CUDA graph."},
    MetricRow{I::kEagerSteps, kC, "lacuna_eager_steps_total", "",
              "Steps launched kernel by kernel."},
    MetricRow{I::kEagerDecodeSteps, kC, "lacuna_eager_decode_steps_total", "",
              "Of those, steps of nothing but decode rows on a device that records graphs: audited "
              "rows, many sparse profiles at once, or the first step of its kind."},
    MetricRow{
        I::kSampleRereads, kC, "lacuna_sample_rereads_total", "",
        "Rows of logits that sampling on a GPU read twice: for a large top_k, a low min_p, or a "
        "top_p with too few likely tokens at hand, or with logprobs, penalties, a bias or a mask."},
    MetricRow{I::kPlanSeconds, kH, "lacuna_plan_seconds", "", "Time to plan one step."},
    MetricRow{I::kStepSeconds, kH, "lacuna_step_seconds", "", "Time of one whole step."},
    MetricRow{
        I::kGapSeconds, kH, "lacuna_step_gap_seconds", "",
        "Time before a step in which the device had nothing to do although there was work; an "
        "upper bound by the host's clock."},
    MetricRow{I::kBatchMax, kG, "lacuna_batch_sequences_max", "",
              "Sequences of the largest step so far."},
    MetricRow{I::kSubmitted, kC, "lacuna_requests_submitted_total", "",
              "Requests that the engine accepted."},
    MetricRow{I::kRejected, kC, "lacuna_requests_rejected_total", "",
              "Requests that the engine refused at intake."},
    MetricRow{I::kEvictedPages, kC, "lacuna_evicted_pages_total", "",
              "Cached pages dropped to make room."},
    MetricRow{I::kSparseDecodeSteps, kC, "lacuna_sparse_decode_steps_total", "kind",
              "Decode steps of requests with a sparse profile; dense: too short to select."},
    MetricRow{I::kSparsePagesConsidered, kC, "lacuna_sparse_pages_considered_total", "",
              "Pages that sparse decode steps chose from, over layers and kv heads."},
    MetricRow{I::kSparsePagesSelected, kC, "lacuna_sparse_pages_selected_total", "",
              "Pages that sparse decode steps read."},
    MetricRow{I::kSparsePrefillBlocksConsidered, kC,
              "lacuna_sparse_prefill_blocks_considered_total", "",
              "Causal blocks of 64 x 64 tokens of prompts, in layers with sparse prefill."},
    MetricRow{I::kSparsePrefillBlocksSelected, kC, "lacuna_sparse_prefill_blocks_selected_total",
              "", "Those of them that were computed."},
    MetricRow{I::kSparseAuditedSteps, kC, "lacuna_sparse_audited_steps_total", "",
              "Sparse decode steps that were computed densely too."},
    MetricRow{I::kSparseAudits, kC, "lacuna_sparse_audits_total", "layer_group",
              "Audited steps by third of the layers: first, middle, last."},
    MetricRow{I::kSparseCapturedMass, kC, "lacuna_sparse_captured_mass_sum_total", "layer_group",
              "Sum over audits of the share of the attention that was read."},
    MetricRow{I::kSparseOutputError, kC, "lacuna_sparse_output_error_sum_total", "layer_group",
              "Sum over audits of the relative error of the attention's output."},
    MetricRow{I::kSparseBudgetsWidened, kC, "lacuna_sparse_budgets_widened_total", "",
              "Times that a mass floor made a request's budget grow."},
    MetricRow{I::kReady, kG, "lacuna_ready", "", "1 while /ready answers 200."},
    MetricRow{I::kHttpRequests, kC, "lacuna_http_requests_total", "handler,method,status",
              "HTTP answers; unknown routes have the handler \"other\"."},
    MetricRow{I::kHttpConnections, kG, "lacuna_http_connections", "", "Open HTTP connections."},
};
static_assert(kTable.size() == static_cast<size_t>(MetricId::kCount));

}  // namespace

std::span<const MetricRow> MetricTable() { return kTable; }

const MetricRow& Row(MetricId id) { return kTable[static_cast<size_t>(id)]; }

}  // namespace lacuna::server
