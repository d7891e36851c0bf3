// See team.cpp.
#pragma once
#include <stddef.h>
#include <stdint.h>

inline void *operator new(size_t, void *place) noexcept { return place; }

typedef void (*TeamFunction)(void *context, int member, int members);

// Call function(context, i, members) once for each i in [0, members), on this thread and up to `helpers` others, and return when
// all are done. Which thread takes which member is open; members must not wait for each other.
extern "C" __attribute__((visibility("hidden"))) void braid_team_run(int helpers, int members, TeamFunction function, void *context);
