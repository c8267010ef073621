// The emulator compiles nothing at run time: a cubin says which of the kernels in the library its source has, and for which architecture.
#include "image.h"

#include <cstring>

#include <elf.h>

namespace emu {
namespace {

constexpr unsigned short CUBIN = 190;  // EM_CUDA
constexpr unsigned char OLDER = 7;     // the version in which the architecture is the flags' lowest byte; later it is the next one

bool part_of_a_name(char c) { return c == '_' || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }

bool mentions(const std::string& source, const std::string& name) {
    for (std::size_t at = source.find(name); at != std::string::npos; at = source.find(name, at + 1)) {
        std::size_t end = at + name.size();
        if ((at == 0 || !part_of_a_name(source[at - 1])) && (end == source.size() || !part_of_a_name(source[end]))) return true;
    }
    return false;
}

}  // namespace

std::string write_image(const std::string& source, int architecture) {
    // One section, of names with a zero in front of and behind each, as they stand in a table of strings.
    std::string names(1, '\0');
    for (const std::string& name : kernel_names())
        if (mentions(source, name)) names += name + '\0';
    Elf64_Ehdr header = {};
    std::memcpy(header.e_ident, ELFMAG, SELFMAG);
    header.e_ident[EI_CLASS] = ELFCLASS64;
    header.e_ident[EI_DATA] = ELFDATA2LSB;
    header.e_ident[EI_VERSION] = EV_CURRENT;
    header.e_ident[EI_ABIVERSION] = OLDER + 1;
    header.e_machine = CUBIN;
    header.e_flags = unsigned(architecture) << 8;
    header.e_ehsize = sizeof header;
    header.e_shoff = sizeof header + (names.size() + 7) / 8 * 8;
    header.e_shentsize = sizeof(Elf64_Shdr);
    header.e_shnum = 1;
    Elf64_Shdr section = {};
    section.sh_type = SHT_STRTAB;
    section.sh_offset = sizeof header;
    section.sh_size = names.size();
    std::string image(reinterpret_cast<const char*>(&header), sizeof header);
    image += names;
    image.resize(header.e_shoff);
    return image.append(reinterpret_cast<const char*>(&section), sizeof section);
}

bool read_image(const void* bytes, Image& image) {
    auto* begin = static_cast<const char*>(bytes);
    if (std::memcmp(begin, ELFMAG, SELFMAG) != 0) return false;
    Elf64_Ehdr header;
    std::memcpy(&header, begin, sizeof header);
    if (header.e_machine != CUBIN) return false;
    int architecture = (header.e_ident[EI_ABIVERSION] <= OLDER ? header.e_flags : header.e_flags >> 8) & 0xff;
    image.major = architecture / 10;
    image.minor = architecture % 10;
    std::string names;
    for (unsigned i = 0; i < header.e_shnum; i++) {
        Elf64_Shdr section;
        std::memcpy(&section, begin + header.e_shoff + i * header.e_shentsize, sizeof section);
        if (section.sh_type == SHT_STRTAB) names.append(begin + section.sh_offset, section.sh_size);
    }
    for (const std::string& name : kernel_names())
        if (names.find('\0' + name + '\0') != std::string::npos) image.kernels.push_back(name);
    return true;
}

}  // namespace emu
