// The emulator compiles nothing at run time: an image says which of the kernels in the library its source holds.
#include "image.h"

#include <cstdio>
#include <cstring>
#include <sstream>

namespace emu {
namespace {

const char FIRST_LINE[] = "kernels of an emulated GPU\n";

bool part_of_a_name(char c) { return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool mentions(const std::string& source, const std::string& name) {
    for (std::size_t at = source.find(name); at != std::string::npos; at = source.find(name, at + 1)) {
        std::size_t end = at + name.size();
        if ((at == 0 || !part_of_a_name(source[at - 1])) && (end == source.size() || !part_of_a_name(source[end]))) return true;
    }
    return false;
}

}  // namespace

std::string write_image(const std::string& source, int major, int minor) {
    std::string image = std::string(FIRST_LINE) + "sm " + std::to_string(major) + " " + std::to_string(minor) + "\n";
    for (const std::string& name : kernel_names())
        if (mentions(source, name)) image += name + "\n";
    return image;
}

bool read_image(const char* text, Image& image) {
    if (std::strncmp(text, FIRST_LINE, sizeof FIRST_LINE - 1) != 0) return false;
    std::istringstream lines(text + sizeof FIRST_LINE - 1);
    std::string line;
    if (!std::getline(lines, line) || std::sscanf(line.c_str(), "sm %d %d", &image.major, &image.minor) != 2) return false;
    while (std::getline(lines, line)) image.kernels.push_back(line);
    return true;
}

}  // namespace emu
