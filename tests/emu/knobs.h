// What FASTDECODE_EMU says, for example "devices=1,driver=12080,capability=9.0,memory=1048576,fail=cuMemAlloc:3:2,eager=1".
#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace emu {

// The `count`th call of `function` fails with `code`.
struct Failure {
    std::string function;
    unsigned long count;
    int code;
};

struct Knobs {
    int devices = 1;
    int driver = 12080;
    int major = 9, minor = 0;
    int multiprocessors = 4;
    std::size_t memory = std::size_t(1) << 30;
    bool eager = false;    // run work where it is queued, to find a fault in a debugger
    bool reverse = false;  // turns from the last block, warp and lane to the first
    std::vector<Failure> failures;
};

// Reads the text into `knobs`. Returns a sentence about the first part that means nothing, or nothing.
std::string read_knobs(const std::string& text, Knobs& knobs);

}  // namespace emu
