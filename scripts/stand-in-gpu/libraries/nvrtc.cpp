// The stand-in libnvrtc.so.13: compiles kernel sources with a C++ compiler, for the CPU. It finds device.h
// in the folder `device` beside itself, and the kernels of a source by their form, after the preprocessor:
// `extern "C" __global__ void NAME(`, with or without __launch_bounds__.
#include "../entry.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <regex>
#include <set>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#define EXPORT extern "C" __attribute__((visibility("default")))

extern char **environ;

namespace {

// As nvrtc.h has them.
enum Result { SUCCESS = 0, INVALID_INPUT = 3, INVALID_PROGRAM = 4, INVALID_OPTION = 5, COMPILATION = 6, INTERNAL_ERROR = 11 };

struct Program {
    std::string source, name, log, image, text;
    bool machine_code = false; // asked for: an architecture sm_, not compute_
};

std::string folder() {
    Dl_info info;
    dladdr((void *)&folder, &info);
    std::string path = info.dli_fname;
    size_t slash = path.rfind('/');
    return slash == std::string::npos ? "." : path.substr(0, slash);
}

// Runs a command, its errors to a file.
bool run(const std::vector<std::string> &command, const std::string &errors) {
    std::vector<char *> arguments;
    for (const std::string &part : command) {
        arguments.push_back(const_cast<char *>(part.c_str()));
    }
    arguments.push_back(nullptr);
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, errors.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    pid_t child;
    int failed = posix_spawnp(&child, arguments[0], &actions, nullptr, arguments.data(), environ);
    posix_spawn_file_actions_destroy(&actions);
    if (failed) {
        return false;
    }
    int status;
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
    }
    return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

std::string read_file(const std::string &path) {
    std::string text;
    if (FILE *file = fopen(path.c_str(), "rb")) {
        char part[65536];
        for (size_t count; (count = fread(part, 1, sizeof part, file)) > 0;) {
            text.append(part, count);
        }
        fclose(file);
    }
    return text;
}

bool write_file(const std::string &path, const std::string &text) {
    FILE *file = fopen(path.c_str(), "wb");
    if (!file) {
        return false;
    }
    bool whole = fwrite(text.data(), 1, text.size(), file) == text.size();
    return fclose(file) == 0 && whole;
}

// The entries of the kernels, which are found in the source as the preprocessor leaves it (see scan.h).
std::string entries(const std::string &preprocessed) {
    std::string text;
    std::set<std::string> seen;
    const std::string bounds = R"((?:stand_in_bounds_mark\s*\(\s*([^,()]+|[^()]*\([^()]*\)[^,()]*)\s*(?:,[^)]*)?\)\s*)?)";
    const std::regex kernel(R"(extern\s+"C"\s+stand_in_kernel_mark\s+)" + bounds + R"(void\s+)" + bounds + R"(([A-Za-z_]\w*)\s*\()");
    for (std::sregex_iterator found(preprocessed.begin(), preprocessed.end(), kernel), end; found != end; ++found) {
        const std::smatch &match = *found;
        std::string most = match[1].matched ? match[1] : match[2].matched ? match[2] : std::string("1024");
        if (seen.insert(match[3]).second) {
            text += "STAND_IN_KERNEL(" + match[3].str() + ", (" + most + "))\n";
        }
    }
    return text;
}

// The options that are passed on; whether all are NVRTC's.
bool translate(int count, const char *const *options, Program *program, std::vector<std::string> &command) {
    static const char *const KNOWN[] = {"--std", "-std", "--use_fast_math", "-use_fast_math", "--fmad", "-fmad", "--ftz", "-ftz", "--prec-",
        "-prec-", "--maxrregcount", "-maxrregcount", "--extra-device-vectorization", "--generate-line-info", "-lineinfo", "--device-debug",
        "-G", "--restrict", "-restrict", "--default-device", "-default-device", "--disable-warnings", "-w", "--diag-", "-diag-",
        "--ptxas-options", "-Xptxas", "--dopt", "-dopt", "--split-compile", "--device-as-default-execution-space", "--minimal", "-minimal"};
    for (int i = 0; i < count; i++) {
        std::string option = options[i];
        auto begins = [&](const char *with) { return option.compare(0, strlen(with), with) == 0; };
        if (begins("--gpu-architecture") || begins("-arch")) {
            program->machine_code = option.find("sm_") != std::string::npos;
        } else if (begins("--define-macro=")) {
            command.push_back("-D" + option.substr(strlen("--define-macro=")));
        } else if (begins("--undefine-macro=")) {
            command.push_back("-U" + option.substr(strlen("--undefine-macro=")));
        } else if (option == "--define-macro" || option == "-D") {
            if (++i == count) {
                return false;
            }
            command.push_back(std::string("-D") + options[i]);
        } else if (begins("-D") || begins("-U")) {
            command.push_back(option);
        } else if (!begins("-I") && !begins("--include-path")) {
            bool known = false;
            for (const char *one : KNOWN) {
                known |= begins(one);
            }
            if (!known) {
                program->log = "nvrtc: error: unrecognized option " + option + " found\n";
                return false;
            }
        }
    }
    return true;
}

Result compile(Program *program, int count, const char *const *options) {
    const char *temporary = getenv("TMPDIR");
    std::string path = std::string(temporary && *temporary ? temporary : "/tmp") + "/stand-in-nvrtc-XXXXXX";
    if (!mkdtemp(path.data())) {
        program->log = "no folder can be made in " + path + "\n";
        return INTERNAL_ERROR;
    }
    std::string source = path + "/source.cpp", scanned = path + "/scanned", library = path + "/module.so", errors = path + "/errors";
    std::string device = folder() + "/device";
    std::vector<std::string> defines;
    Result result = INVALID_OPTION;
    if (translate(count, options, program, defines)) {
        auto command = [&](std::vector<std::string> parts) {
            parts.insert(parts.begin(), {STAND_IN_CXX, "-std=c++17"});
            parts.insert(parts.end(), defines.begin(), defines.end());
            return parts;
        };
        // In a namespace without name, so that all shared memory, of templates too, can be in one section (see device.h).
        std::string text = "namespace {\n#line 1 \"" + program->name + "\"\n" + program->source + "\n}\n";
        bool whole = write_file(source, text) && run(command({"-E", "-P", "-include", device + "/scan.h", source, "-o", scanned}), errors);
        whole = whole && write_file(source, text + "#include \"module.h\"\n" + entries(read_file(scanned)));
        whole = whole && run(command({"-O2", "-march=native", "-w", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-gnu-unique",
            "-DSTAND_IN_SHARED_SECTION", "-I" + device, "-include", device + "/device.h", source, "-o", library}), errors);
        result = whole ? SUCCESS : COMPILATION;
        program->log = whole ? "" : read_file(errors);
        std::string bytes = read_file(library);
        if (result == SUCCESS) {
            stand_in_image head = {STAND_IN_IMAGE, bytes.size(), STAND_IN_VERSION};
            program->image.assign((const char *)&head, sizeof head);
            program->image += bytes;
        }
    }
    for (const std::string &file : {source, scanned, library, errors}) {
        unlink(file.c_str());
    }
    rmdir(path.c_str());
    return result;
}

} // namespace

EXPORT Result nvrtcVersion(int *major, int *minor) {
    *major = 13, *minor = 0;
    return SUCCESS;
}
EXPORT const char *nvrtcGetErrorString(Result result) {
    switch (result) {
    case SUCCESS: return "NVRTC_SUCCESS";
    case INVALID_INPUT: return "NVRTC_ERROR_INVALID_INPUT";
    case INVALID_PROGRAM: return "NVRTC_ERROR_INVALID_PROGRAM";
    case INVALID_OPTION: return "NVRTC_ERROR_INVALID_OPTION";
    case COMPILATION: return "NVRTC_ERROR_COMPILATION";
    default: return "NVRTC_ERROR_INTERNAL_ERROR";
    }
}
EXPORT Result nvrtcGetNumSupportedArchs(int *count) {
    *count = 1;
    return SUCCESS;
}
EXPORT Result nvrtcGetSupportedArchs(int *architectures) {
    *architectures = 90;
    return SUCCESS;
}
EXPORT Result nvrtcCreateProgram(Program **program, const char *source, const char *name, int headers, const char *const *, const char *const *) {
    if (headers || !source) {
        return INVALID_INPUT;
    }
    *program = new Program;
    (*program)->source = source;
    (*program)->name = name ? name : "default_program";
    return SUCCESS;
}
EXPORT Result nvrtcDestroyProgram(Program **program) {
    delete *program;
    *program = nullptr;
    return SUCCESS;
}
EXPORT Result nvrtcCompileProgram(Program *program, int count, const char *const *options) {
    program->image.clear(), program->text.clear(), program->log.clear();
    Result result = compile(program, count, options);
    if (result == SUCCESS) {
        program->text = "// " STAND_IN_IMAGE "\n";
        for (unsigned char byte : program->image) {
            program->text += "0123456789abcdef"[byte >> 4];
            program->text += "0123456789abcdef"[byte & 15];
        }
    }
    return result;
}
EXPORT Result nvrtcGetCUBINSize(Program *program, size_t *size) {
    *size = program->machine_code ? program->image.size() : 0;
    return SUCCESS;
}
EXPORT Result nvrtcGetCUBIN(Program *program, char *bytes) {
    if (program->image.empty() || !program->machine_code) {
        return INVALID_PROGRAM;
    }
    memcpy(bytes, program->image.data(), program->image.size());
    return SUCCESS;
}
// The sizes of texts count the zero at the end.
EXPORT Result nvrtcGetPTXSize(Program *program, size_t *size) {
    *size = program->text.size() + 1;
    return program->text.empty() ? INVALID_PROGRAM : SUCCESS;
}
EXPORT Result nvrtcGetPTX(Program *program, char *text) {
    memcpy(text, program->text.c_str(), program->text.size() + 1);
    return program->text.empty() ? INVALID_PROGRAM : SUCCESS;
}
EXPORT Result nvrtcGetProgramLogSize(Program *program, size_t *size) {
    *size = program->log.size() + 1;
    return SUCCESS;
}
EXPORT Result nvrtcGetProgramLog(Program *program, char *text) {
    memcpy(text, program->log.c_str(), program->log.size() + 1);
    return SUCCESS;
}
