/* user.cpp: a C++ program with a compiled model and the runtime library, as CMake links them.
 * usage: user WEIGHTS GOLDEN */
#include "golden.h"

#include <iostream>
#include <memory>

int main(int argc, char **argv)
{
    tiny *created = nullptr;
    tiny_Options options = tiny_Options();
    options.size = sizeof options;
    options.threads = 2;
    if (argc != 3 || tiny_create(&options, &created, nullptr, 0) != tiny_OK) return 2;
    std::unique_ptr<tiny, decltype(&tiny_destroy)> model(created, tiny_destroy);
    if (check_golden(model.get(), argv[1], argv[2])) return 3;
    std::cout << "user.cpp: the logits are PyTorch's\n";
    return 0;
}
