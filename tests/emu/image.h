// Images of modules: cubins, which the emulator reads for what they hold, and does not run.
#pragma once

#include <string>
#include <vector>

namespace emu {

struct Image {
    int major = 0, minor = 0;
    std::vector<std::string> kernels;  // those that the emulator has
};

// A file that looks like a cubin of the registered kernels that a source mentions, for an architecture such as 90.
std::string write_image(const std::string& source, int architecture);

// Reads a cubin, the emulator's or a real one. False if it is something else. Like the driver, it believes the header's sizes.
bool read_image(const void* bytes, Image& image);

// Names of all registered kernels.
std::vector<std::string> kernel_names();

}  // namespace emu
