// The stages of SelectRanges as launches, in the order in which select_ranges.cc calls them. All
// read and write the scratch of a RangeWork; asynchronous on `stream`.
#pragma once

#include <cuda_runtime.h>

#include "kernels/core/dtype.h"
#include "kernels/core/status.h"
#include "kernels/cuda/ops.h"
#include "kernels/cuda/ranges/range_work.h"

namespace lacuna::kernels::cuda {

// range_pack.cu: keys (of a slice of heads) and queries (of a slice of rows) as tiles.
Status PackRangeKeys(const RangeWork& work, DType dtype, cudaStream_t stream);
Status PackRangeQueries(const RangeWork& work, DType dtype, cudaStream_t stream);

// range_scores.cu, range_scores_sm90.cu (antidiagonals), range_probe_sm90.cu (probes): tile_sums,
// and block_sums of antidiagonals, part_sums of probes that choose blocks. The same bits for a row
// and a tile however rows are cut; not the same from all kernels.
Status RangeScores(const RangeWork& work, DType dtype, const DeviceTraits& traits,
                   cudaStream_t stream);
Status RangeScoresSm90(const RangeWork& work, DType dtype, int sm_count, cudaStream_t stream);
Status RangeProbeSm90(const RangeWork& work, DType dtype, const DeviceTraits& traits,
                      cudaStream_t stream);

// range_means.cu: means of keys (of a slice of heads) and queries, and their map, or the maps of
// both bands.
Status RangeMeanKeys(const RangeWork& work, DType dtype, cudaStream_t stream);
Status RangeMeanMap(const RangeWork& work, DType dtype, cudaStream_t stream);

// range_spread.cu, range_probe_sm90.cu: the probabilities of probes, summed along columns and
// diagonals (vertical_slash).
Status RangeSpread(const RangeWork& work, DType dtype, const DeviceTraits& traits,
                   cudaStream_t stream);
Status RangeSpreadSm90(const RangeWork& work, DType dtype, const DeviceTraits& traits,
                       cudaStream_t stream);

// range_combine.cu: tile and block sums to scores of blocks (antidiagonal); tile sums to each row's
// sum (probes); those and part sums to sums of blocks of columns and distances (cover).
Status CombineRangeScores(const RangeWork& work, cudaStream_t stream);
Status RangeLse(const RangeWork& work, cudaStream_t stream);
Status CombineRangeParts(const RangeWork& work, cudaStream_t stream);
// Whether each cell's probe agrees with its pooled map (FlexPrefill).
Status CompareRangeMaps(const RangeWork& work, DType dtype, cudaStream_t stream);

// range_choose.cu: `kept` of scores; `columns` and `distances` of a probe's sums of blocks.
// range_singles.cu: those of its single columns and distances (vertical_slash).
Status ChooseRangeBlocks(const RangeWork& work, cudaStream_t stream);
Status ChooseRangeCells(const RangeWork& work, cudaStream_t stream);
Status ChooseRangeSingles(const RangeWork& work, cudaStream_t stream);

// range_write.cu: the ranges and counts of all tiles of the chunk, for a slice of heads.
Status WriteRanges(const RangeWork& work, cudaStream_t stream);

}  // namespace lacuna::kernels::cuda
