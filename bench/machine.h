/* machine.h: what the figures were measured on. */
#ifndef WALRUS_BENCH_MACHINE_H
#define WALRUS_BENCH_MACHINE_H

#include "../shared/base.h"

struct machine {
    char kernel[160];
    char processor[128];
    long cores;
    uint64_t memory_bytes;
    char folder[4096];
    char file_system[32];
    char device[64];      /* block device behind the folder; "" if there is none */
    char write_cache[32]; /* "write back", "write through"; "" unknown */
    char fua[8];          /* "0", "1"; "" unknown */
    char scheduler[64];
    uint32_t physical_block, logical_block;
    bool is_disk;         /* false: memory (tmpfs, ramfs, zram) or unknown; its figures are no disk's */
    char not_a_disk[128]; /* why */
};

/* Number `field` (from 0) of the words of `line`; 0 if there is none. */
uint64_t number_in_line(const char *line, unsigned field);

/* CPU time all processes together have used so far, ns; waiting for the disk is none. */
int64_t machine_busy_ns(void);
/* Waits until others leave the cores nearly alone, `limit_ns` at most. Cores that others used at last. */
double machine_wait_quiet(int64_t limit_ns);

void machine_look(struct machine *machine, const char *folder);

#endif
