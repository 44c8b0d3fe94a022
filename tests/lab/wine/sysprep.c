/* Sysprep.exe: goes through the image states that Windows' own goes through, in the registry and in State.ini.
 *
 *   IMAGE_STATE_COMPLETE ── seconds/3 ──► IMAGE_STATE_UNDEPLOYABLE ── seconds/3 ──► IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE
 *        dies, hangs                        undeployable (setuperr.log)
 *
 * That a Windows says UNDEPLOYABLE while Sysprep works is what its documentation ("Windows Setup States") and build
 * logs show. As there, this is a program with a window: who starts it does not wait for it.
 *
 * How often it may still be done is LabRearmsLeft of SoftwareProtectionPlatform (a Windows has it in an encrypted store).
 *
 * c:\lab\sysprep.txt scripts it: lines `result generalized|undeployable|dies|hangs` and `seconds N` (3 unless told).
 */
#include "lab.h"

#define STATE L"SOFTWARE\\Microsoft\\Windows\\CurrentVersion\\Setup\\State"
#define LICENCES L"SOFTWARE\\Microsoft\\Windows NT\\CurrentVersion\\SoftwareProtectionPlatform"
#define PANTHER L"C:\\Windows\\System32\\Sysprep\\Panther"

static void append(const wchar_t *name, const char *level, const char *what)
{
    wchar_t path[MAX_PATH];
    char line[512];
    SYSTEMTIME now;
    DWORD written;
    CreateDirectoryW(PANTHER, NULL);
    swprintf(path, COUNT(path), PANTHER L"\\%ls", name);
    HANDLE file = CreateFileW(path, FILE_APPEND_DATA, FILE_SHARE_READ, NULL, OPEN_ALWAYS, 0, NULL);
    if (file == INVALID_HANDLE_VALUE) broken(path);
    GetLocalTime(&now);
    int size = snprintf(line, sizeof line, "%04d-%02d-%02d %02d:%02d:%02d, %-18s SYSPRP %s (lab)\r\n", now.wYear,
                        now.wMonth, now.wDay, now.wHour, now.wMinute, now.wSecond, level, what);
    WriteFile(file, line, size, &written, NULL);
    CloseHandle(file);
}

static void be(const wchar_t *state)
{
    HKEY at = key(STATE, 1);
    set_text(at, L"ImageState", state);
    RegFlushKey(at);
    RegCloseKey(at);
    CreateDirectoryW(L"C:\\Windows\\Setup", NULL);
    CreateDirectoryW(L"C:\\Windows\\Setup\\State", NULL);
    if (!WritePrivateProfileStringW(L"State", L"ImageState", state, L"C:\\Windows\\Setup\\State\\State.ini"))
        broken(L"State.ini");
}

static void fail(const char *why)
{
    append(L"setuperr.log", "Error", why);
    append(L"setupact.log", "Error", why);
    ExitProcess(1);
}

static void script(char *result, size_t size, double *seconds)
{
    char word[64], value[64];
    FILE *file = _wfopen(L"C:\\lab\\sysprep.txt", L"r");
    if (!file) return;
    while (fscanf(file, "%63s %63s", word, value) == 2) {
        if (!strcmp(word, "result")) snprintf(result, size, "%s", value);
        else if (!strcmp(word, "seconds")) *seconds = atof(value);
        else not_here(L"a line of c:\\lab\\sysprep.txt");
    }
    fclose(file);
}

int wmain(int count, wchar_t **words)
{
    int oobe = 0, generalize = 0, quiet = 0, quit = 0, off = 0;
    char result[64] = "generalized";
    double seconds = 3;
    wchar_t now[64];

    for (int each = 1; each < count; each++) {
        if (same(words[each], L"/oobe")) oobe++;
        else if (same(words[each], L"/generalize")) generalize++;
        else if (same(words[each], L"/quiet")) quiet++;
        else if (same(words[each], L"/quit")) quit++;
        else if (same(words[each], L"/shutdown")) off++;
        else if (!same(words[each], L"/mode:vm")) not_here(words[each]);
    }
    if (oobe != 1 || generalize != 1 || quiet != 1 || quit + off != 1)
        not_here(L"Sysprep.exe but with /oobe /generalize /quiet and /quit or /shutdown");
    script(result, sizeof result, &seconds);
    DWORD third = (DWORD)(seconds * 1000 / 3);

    append(L"setupact.log", "Info", "began");
    HKEY at = key(STATE, 1);
    text(at, L"ImageState", now, sizeof now);
    if (!same(now, L"IMAGE_STATE_COMPLETE")) fail("the image state is not IMAGE_STATE_COMPLETE");
    HKEY licences = key(LICENCES, 1);
    DWORD left = number(licences, L"LabRearmsLeft", 0), skips = number(licences, L"SkipRearm", 0);
    if (!left && !skips) fail("no rearm is left [0xc004d307]");
    Sleep(third);
    if (!strcmp(result, "dies")) return 3;
    if (!strcmp(result, "hangs")) Sleep(INFINITE);
    be(L"IMAGE_STATE_UNDEPLOYABLE");
    append(L"setupact.log", "Info", "runs the providers of generalize");
    Sleep(third);
    if (!strcmp(result, "undeployable")) fail("a provider failed half-way, as c:\\lab\\sysprep.txt asked for");
    if (strcmp(result, "generalized")) not_here(L"a result of c:\\lab\\sysprep.txt");
    if (!skips) set_number(licences, L"LabRearmsLeft", left - 1);
    be(L"IMAGE_STATE_GENERALIZE_RESEAL_TO_OOBE");
    append(L"setupact.log", "Info", "generalized");
    Sleep(third);
    if (!off) return 0;
    const wchar_t *program = L"C:\\Windows\\System32\\shutdown.exe";
    return (int)_wspawnl(_P_WAIT, program, L"shutdown.exe", L"/s", L"/t", L"0", NULL);
}
