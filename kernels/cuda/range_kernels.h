// The stages of SelectRanges as launches, in the order in which select_ranges.cc calls them. All
// read and write the scratch of a RangeWork; asynchronous on `stream`.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/range_work.h"

namespace lacuna::kernels::cuda {

// range_pack.cu: keys (of a slice of heads) and queries (of a slice of rows) as tiles.
Status PackRangeKeys(const RangeWork& work, DType dtype, cudaStream_t stream);
Status PackRangeQueries(const RangeWork& work, DType dtype, cudaStream_t stream);

// range_scores.cu, range_scores_sm90.cu: tile_sums, and with `blocks` block_sums. The same bits for
// a row and a tile however rows are cut; not the same from both kernels.
Status RangeScores(const RangeWork& work, DType dtype, bool blocks, const DeviceTraits& traits,
                   cudaStream_t stream);
Status RangeScoresSm90(const RangeWork& work, DType dtype, bool blocks, int sm_count,
                       cudaStream_t stream);

// range_means.cu: means of keys (of a slice of heads) and queries, and their map, or the maps of
// both bands.
Status RangeMeanKeys(const RangeWork& work, DType dtype, cudaStream_t stream);
Status RangeMeanMap(const RangeWork& work, DType dtype, cudaStream_t stream);

// range_spread.cu: the probabilities of probes, summed along columns and diagonals.
Status RangeSpread(const RangeWork& work, DType dtype, cudaStream_t stream);

// range_combine.cu: tile and block sums to scores of blocks (antidiagonal), and sums of columns and
// distances to those of blocks (cover).
Status CombineRangeScores(const RangeWork& work, cudaStream_t stream);
Status PoolRangeSums(const RangeWork& work, cudaStream_t stream);
// Whether each cell's probe agrees with its pooled map (FlexPrefill).
Status CompareRangeMaps(const RangeWork& work, DType dtype, cudaStream_t stream);

// range_choose.cu: `kept` of scores; `columns` and `distances` of a probe's sums.
Status ChooseRangeBlocks(const RangeWork& work, cudaStream_t stream);
Status ChooseRangeCells(const RangeWork& work, cudaStream_t stream);

// range_write.cu: the ranges and counts of all tiles of the chunk, for a slice of heads.
Status WriteRanges(const RangeWork& work, cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
