/* What the lab's programs for Wine share: words, loud ends, the registry. */
#ifndef LAB_H
#define LAB_H

#ifndef UNICODE
#define UNICODE
#define _UNICODE
#endif
#define WIN32_LEAN_AND_MEAN
#define _WIN32_WINNT 0x0a00
#include <winsock2.h>
#include <windows.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <wchar.h>

#define NOT_HERE 250
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* One line on a standard handle, in UTF-8. A program without one says nothing. */
static inline void say(DWORD handle, const wchar_t *format, ...)
{
    wchar_t text[4096];
    char octets[3 * COUNT(text)];
    DWORD written;
    va_list given;
    va_start(given, format);
    _vsnwprintf(text, COUNT(text) - 3, format, given);
    va_end(given);
    text[COUNT(text) - 3] = 0;
    wcscat(text, L"\r\n");
    int size = WideCharToMultiByte(CP_UTF8, 0, text, -1, octets, sizeof octets, NULL, NULL);
    if (size > 1) WriteFile(GetStdHandle(handle), octets, size - 1, &written, NULL);
}

/* What the lab does not have must never look like success. */
static inline void not_here(const wchar_t *what)
{
    say(STD_ERROR_HANDLE, L"lab: not implemented: %ls", what);
    ExitProcess(NOT_HERE);
}

/* The lab itself is broken: neither success nor an error a test would expect. */
static inline void broken(const wchar_t *what)
{
    say(STD_ERROR_HANDLE, L"lab: failed: %ls (%lu)", what, GetLastError());
    ExitProcess(NOT_HERE);
}

static inline int same(const wchar_t *one, const wchar_t *other)
{
    return !_wcsicmp(one, other);
}

/* A variable of ours; empty when there is none. */
static inline wchar_t *variable(const wchar_t *name)
{
    DWORD size = GetEnvironmentVariableW(name, NULL, 0);
    wchar_t *value = calloc(size + 1, sizeof *value);
    if (!value) broken(L"memory");
    if (size) GetEnvironmentVariableW(name, value, size + 1);
    return value;
}

static inline HKEY key(const wchar_t *path, int make)
{
    HKEY found = NULL;
    if (make)
        RegCreateKeyExW(HKEY_LOCAL_MACHINE, path, 0, NULL, 0, KEY_ALL_ACCESS, NULL, &found, NULL);
    else
        RegOpenKeyExW(HKEY_LOCAL_MACHINE, path, 0, KEY_ALL_ACCESS, &found);
    return found;
}

static inline void set_text(HKEY at, const wchar_t *name, const wchar_t *value)
{
    DWORD size = (wcslen(value) + 1) * sizeof *value;
    if (RegSetValueExW(at, name, 0, REG_SZ, (const BYTE *)value, size)) broken(name);
}

static inline void set_number(HKEY at, const wchar_t *name, DWORD value)
{
    if (RegSetValueExW(at, name, 0, REG_DWORD, (const BYTE *)&value, sizeof value)) broken(name);
}

static inline DWORD number(HKEY at, const wchar_t *name, DWORD otherwise)
{
    DWORD value, size = sizeof value, kind;
    if (RegQueryValueExW(at, name, NULL, &kind, (BYTE *)&value, &size) || kind != REG_DWORD) return otherwise;
    return value;
}

static inline void text(HKEY at, const wchar_t *name, wchar_t *into, DWORD octets)
{
    DWORD kind;
    memset(into, 0, octets);
    octets -= sizeof *into;
    if (RegQueryValueExW(at, name, NULL, &kind, (BYTE *)into, &octets) || kind != REG_SZ) into[0] = 0;
}

#endif
