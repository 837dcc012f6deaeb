/* user.cpp: the header of a generated library in C++. */
#include "tiny.h"

#include "tests/library/values.h"

int main()
{
    Values v;
    make_values(&v, 4);
    tiny_Options options = tiny_Options();
    options.size = sizeof options;
    options.threads = 2;
    tiny *model = nullptr;
    if (tiny_create(&options, &model, nullptr, 0) != tiny_OK) return 1;
    int count = 0;
    const tiny_Parameter *parameter = tiny_parameters(model, &count);
    const float *data[] = {v.weight, v.scale, v.bias};
    for (int i = 0; i < count; i++)
        if (tiny_set_parameter(model, parameter[i].name, parameter[i].shape, parameter[i].rank,
                               data[i]) != tiny_OK)
            return 2;
    float logits[tiny_CLASSES];
    if (tiny_forward(model, 1, v.image, logits) != tiny_OK) return 3;
    for (int i = 0; i < tiny_CLASSES; i++)
        if (logits[i] != v.logits[i]) return 4;
    tiny_destroy(model);
    return 0;
}
