#pragma once

namespace bench {

// Registers bars/...: the speeds the CPU backend aims at, each beside what this machine reaches.
void add_bars();

}  // namespace bench
