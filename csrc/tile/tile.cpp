#include "tile/tile.h"

#include <stdexcept>

namespace reapx {

extern const Tile tile_generic;
#ifdef REAPX_X86
extern const Tile tile_avx512;
extern const Tile tile_avx2;
#endif

namespace {

std::vector<const Tile*> available() {
  std::vector<const Tile*> tiles;
#ifdef REAPX_X86
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    tiles.push_back(&tile_avx512);
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tiles.push_back(&tile_avx2);
#endif
  tiles.push_back(&tile_generic);
  return tiles;
}

}  // namespace

std::vector<std::string> tile_names() {
  std::vector<std::string> names;
  for (const Tile* tile : available()) names.emplace_back(tile->name);
  return names;
}

const Tile& tile_pick(const std::string& name) {
  std::string listed;
  for (const Tile* tile : available()) {
    if (name.empty() || name == tile->name) return *tile;
    listed.append(" ").append(tile->name);
  }
  throw std::invalid_argument("core: '" + name + "' is not one of" + listed);
}

}  // namespace reapx
