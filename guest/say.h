/* Sentences for people: to the console, and kept for the host's report. */
#ifndef IRONWORKS_SAY_H
#define IRONWORKS_SAY_H

/* The longest sentence that any part of init makes, with its NUL. Longer ones are cut. */
#define SENTENCE_BYTES 512

/* Prints one line, "ironworks: …", on the console. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

/*
 * Ends the boot: reports "failed <sentence>" to the host and on the console,
 * then powers off. Never returns. Defined in init.c, so that every other part
 * can be linked into a test with an ending of its own.
 */
void fail(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));

#endif
