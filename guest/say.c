#include "say.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

void say(const char *format, ...)
{
	static const char prefix[] = "ironworks: ";
	char line[sizeof(prefix) + SENTENCE_BYTES + 1];
	va_list args;
	int length;

	memcpy(line, prefix, sizeof(prefix) - 1);
	va_start(args, format);
	length = vsnprintf(line + sizeof(prefix) - 1, SENTENCE_BYTES, format, args);
	va_end(args);
	if (length < 0)
		return;
	if (length >= SENTENCE_BYTES)
		length = SENTENCE_BYTES - 1;
	length += (int)sizeof(prefix) - 1;
	line[length++] = '\n';
	/* A console that takes nothing must not stop a boot: no retry. */
	if (write(STDERR_FILENO, line, (size_t)length) < 0)
		return;
}
