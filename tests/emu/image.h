// What stands for a cubin: a text that names an architecture and the kernels of one source.
#pragma once

#include <string>
#include <vector>

namespace emu {

struct Image {
    int major = 0, minor = 0;
    std::vector<std::string> kernels;
};

// The registered kernels that a source mentions, as an image for this architecture.
std::string write_image(const std::string& source, int major, int minor);

// Reads what write_image made. False if it is something else.
bool read_image(const char* text, Image& image);

// Names of all registered kernels.
std::vector<std::string> kernel_names();

}  // namespace emu
