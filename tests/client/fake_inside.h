/* fake_inside.h: what the two files of the fake share. */
#ifndef WALRUS_TEST_FAKE_INSIDE_H
#define WALRUS_TEST_FAKE_INSIDE_H

#include "fake.h"

void fake_mistake(struct fake *fake, const char *what, uint64_t number);
void fake_end_stream(struct fake *fake, struct fake_stream *stream, bool keep);

#endif
