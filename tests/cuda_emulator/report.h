// Where code is, for messages of the emulator: names and lines from the program's own symbols.
#pragma once

#include <string>

namespace cuda_emulator {

// "lacuna::kernels::cuda::SampleKernel<false>(...)", as addr2line knows it.
std::string FunctionAt(const void* address);
// The calls that lead here, with file and line, to standard error.
void PrintCalls();

}  // namespace cuda_emulator
