/* The entrypoint: started as init's child, in the image's own terms. */
#ifndef IRONWORKS_CHILD_H
#define IRONWORKS_CHILD_H

#include "config.h"
#include "user.h"

#include <sys/types.h>

/*
 * Starts the entrypoint with the image's environment, user, groups, working
 * directory and arguments. Returns its pid once the kernel runs it; fails the
 * boot with a sentence otherwise.
 */
pid_t child_start(const struct config *config, const struct user *user);

/*
 * Hands process 1 over to the image's own init, as root, with the image's
 * environment; fails the boot with a sentence if there is none that can run.
 */
void child_become_init(const struct config *config) __attribute__((noreturn));

#endif
