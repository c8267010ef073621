// Reading the knobs; a part that means nothing is an error, so that a test cannot try something else than it says.
#include "knobs.h"

#include <cstdio>
#include <sstream>

namespace emu {
namespace {

bool read_part(const std::string& key, const std::string& value, Knobs& knobs) {
    const char* text = value.c_str();
    char end;
    if (key == "devices") return std::sscanf(text, "%d%c", &knobs.devices, &end) == 1 && knobs.devices >= 0;
    if (key == "driver") return std::sscanf(text, "%d%c", &knobs.driver, &end) == 1;
    if (key == "capability") return std::sscanf(text, "%d.%d%c", &knobs.major, &knobs.minor, &end) == 2;
    if (key == "multiprocessors") return std::sscanf(text, "%d%c", &knobs.multiprocessors, &end) == 1 && knobs.multiprocessors > 0;
    if (key == "memory") return std::sscanf(text, "%zu%c", &knobs.memory, &end) == 1;
    if (key == "eager" || key == "reverse") {
        if (value != "0" && value != "1") return false;
        (key == "eager" ? knobs.eager : knobs.reverse) = value == "1";
        return true;
    }
    if (key == "fail") {
        char function[64];
        unsigned long count;
        int code;
        if (std::sscanf(text, "%63[A-Za-z0-9_]:%lu:%d%c", function, &count, &code, &end) != 3 || count == 0) return false;
        knobs.failures.push_back({function, count, code});
        return true;
    }
    return false;
}

}  // namespace

std::string read_knobs(const std::string& text, Knobs& knobs) {
    std::istringstream parts(text);
    std::string part;
    while (std::getline(parts, part, ',')) {
        if (part.empty()) continue;
        auto equals = part.find('=');
        if (equals == std::string::npos || !read_part(part.substr(0, equals), part.substr(equals + 1), knobs))
            return "FASTDECODE_EMU has the part \"" + part + "\", which means nothing to the emulator";
    }
    return "";
}

}  // namespace emu
