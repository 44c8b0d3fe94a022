/* taskkill.exe [/t] /f /pid N | /im NAME: Wine's own knows no /t. */
#include "lab.h"
#include <tlhelp32.h>

#define MOST 4096

static PROCESSENTRY32W all[MOST];
static DWORD count, ended;

static void end(DWORD id, int tree)
{
    /* Children first: afterwards nobody would know whose they were. */
    for (DWORD each = 0; tree && each < count; each++)
        if (all[each].th32ParentProcessID == id && all[each].th32ProcessID != id) end(all[each].th32ProcessID, tree);
    HANDLE process = OpenProcess(PROCESS_TERMINATE | SYNCHRONIZE, FALSE, id);
    if (!process || !TerminateProcess(process, 1)) return;
    WaitForSingleObject(process, 5000);
    say(STD_OUTPUT_HANDLE, L"SUCCESS: The process with PID %lu has been terminated.", id);
    ended++;
}

int wmain(int words, wchar_t **word)
{
    int tree = 0, force = 0;
    DWORD id = 0;
    wchar_t *image = NULL;
    for (int each = 1; each < words; each++) {
        if (same(word[each], L"/t")) tree = 1;
        else if (same(word[each], L"/f")) force = 1;
        else if (same(word[each], L"/pid") && each + 1 < words) id = wcstoul(word[++each], NULL, 10);
        else if (same(word[each], L"/im") && each + 1 < words) image = word[++each];
        else not_here(word[each]);
    }
    if (!force || !id == !image) not_here(L"taskkill.exe but with /f and one of /pid and /im");
    HANDLE snapshot = CreateToolhelp32Snapshot(TH32CS_SNAPPROCESS, 0);
    if (snapshot == INVALID_HANDLE_VALUE) broken(L"the list of processes");
    all[0].dwSize = sizeof all[0];
    for (BOOL more = Process32FirstW(snapshot, &all[0]); more && ++count < MOST;) {
        all[count].dwSize = sizeof all[count];
        more = Process32NextW(snapshot, &all[count]);
    }
    for (DWORD each = 0; image && each < count; each++)
        if (same(all[each].szExeFile, image)) end(all[each].th32ProcessID, tree);
    if (id) end(id, tree);
    if (!ended) say(STD_ERROR_HANDLE, L"ERROR: The process was not found.");
    return ended ? 0 : 128;
}
