// Running a kernel's grid: block after block, a block's threads as fibers.
#pragma once

#include <cstddef>
#include <string>

#include "threads.h"

namespace emu {

constexpr unsigned MOST_THREADS = 1024;

// A kernel that a file has registered.
struct Kernel {
    std::string file, name;
    std::size_t arguments;
    void (*run)(const void*);
    unsigned char *shared, *shared_end;
};

// The registered kernel of this name, or null.
const Kernel* find_kernel(const std::string& name);

// What went wrong in a kernel: an error code of the driver (0 if nothing did) and a sentence.
struct Fault {
    int code = 0;
    std::string message;
};

// Runs the whole grid, or as far as the first fault. With `early` the kernel may begin before the one in front of it has ended, and each of its
// threads has to wait for that one (here it has ended, as it may have on a GPU). With `reverse`, blocks, warps and lanes take their turns from the last to the
// first: results that depend on the order of what is not synchronized differ.
Fault run_grid(const Kernel& kernel, const void* arguments, dim3 grid, dim3 block, std::size_t dynamic_bytes, bool early, bool reverse);

// Ends the running kernel with a fault. Called on a fiber; does not return.
[[noreturn]] void fault(int code, const char* format, ...) __attribute__((format(printf, 2, 3)));

// Whether these bytes are the running block's shared memory, and whether its asynchronous copies come at once.
bool is_shared(const void* at, std::size_t bytes);
bool copies_at_once();

// What threads of earlier blocks have under way comes to nothing.
void forget_copies();

// Errors of the driver that kernels end with.
constexpr int ILLEGAL_ADDRESS = 700, MISALIGNED_ADDRESS = 716, ASSERT = 710, LAUNCH_FAILED = 719;

}  // namespace emu
