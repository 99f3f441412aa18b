#include "sample_moments/levels.h"

namespace sigeo_ext::sample_moments {

template const Tiles<float>& tiles();

}  // namespace sigeo_ext::sample_moments
