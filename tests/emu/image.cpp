// The emulator compiles nothing at run time: an image says which of the kernels in the library its source holds.
#include "image.h"

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <sstream>

namespace emu {
namespace {

const std::size_t HEADER = 64;
const char FIRST_LINE[] = "kernels of an emulated GPU\n";

bool part_of_a_name(char c) { return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool mentions(const std::string& source, const std::string& name) {
    for (std::size_t at = source.find(name); at != std::string::npos; at = source.find(name, at + 1)) {
        std::size_t end = at + name.size();
        if ((at == 0 || !part_of_a_name(source[at - 1])) && (end == source.size() || !part_of_a_name(source[end]))) return true;
    }
    return false;
}

// An ELF file with one section, which holds the text: a host that looks at headers before it hands an image on finds a whole file.
std::string as_file(const std::string& text) {
    std::string file(HEADER, '\0');
    const auto put = [&file](std::size_t at, std::uint64_t value, std::size_t bytes) { std::memcpy(&file[at], &value, bytes); };
    std::memcpy(&file[0], "\x7f" "ELF\2\1\1", 7);
    put(40, HEADER + text.size(), 8);  // where the table of sections is
    put(58, HEADER, 2);                // bytes of an entry
    put(60, 1, 2);                     // entries
    file += text;
    const std::size_t section = file.size();
    file.append(HEADER, '\0');
    put(section + 4, 1, 4);
    put(section + 24, HEADER, 8);
    put(section + 32, text.size(), 8);
    return file;
}

}  // namespace

std::string write_image(const std::string& source, int major, int minor) {
    std::string image = std::string(FIRST_LINE) + "sm " + std::to_string(major) + " " + std::to_string(minor) + "\n";
    for (const std::string& name : kernel_names())
        if (mentions(source, name)) image += name + "\n";
    return as_file(image);
}

bool read_image(const char* file, Image& image) {
    if (std::memcmp(file, "\x7f" "ELF\2\1\1", 7) != 0) return false;
    std::uint64_t end;
    std::memcpy(&end, file + 40, sizeof end);
    if (end < HEADER + sizeof FIRST_LINE) return false;
    const std::string content(file + HEADER, file + end);
    const char* text = content.c_str();
    if (std::strncmp(text, FIRST_LINE, sizeof FIRST_LINE - 1) != 0) return false;
    std::istringstream lines(text + sizeof FIRST_LINE - 1);
    std::string line;
    if (!std::getline(lines, line) || std::sscanf(line.c_str(), "sm %d %d", &image.major, &image.minor) != 2) return false;
    while (std::getline(lines, line)) image.kernels.push_back(line);
    return true;
}

}  // namespace emu
