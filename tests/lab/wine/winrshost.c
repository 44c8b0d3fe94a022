/* Stands where Windows' WinRM shell host stands: starts one command line and tells its whole exit code.
 *
 *   server ── LAB_LINE, LAB_DIRECTORY, LAB_SET_… ─► winrshost.exe ─► cmd.exe /s /c "LINE"   (or LINE itself: LAB_PLAIN)
 *      ▲                                                │
 *      └── file LAB_CODE: 32 bits, in decimal ◄─────────┘      Linux would keep eight of them
 *
 * All that the command starts is in one job, which ends with this program, however that ends: so a Signal is one
 * kill. Who asks to leave the job (a scheduled task) may, as in Windows' own.
 */
#include "lab.h"

/* LAB_SET_<name>=<value>: the shell's variables; the rest of LAB_ is for this program and the lab's others. */
static void take_variables(void)
{
    static const wchar_t prefix[] = L"LAB_SET_";
    wchar_t *block = GetEnvironmentStringsW();
    for (wchar_t *at = block; *at; at += wcslen(at) + 1) {
        wchar_t *value = wcschr(at + 1, L'=');
        if (!value || wcsncmp(at, prefix, COUNT(prefix) - 1)) continue;
        *value = 0;
        SetEnvironmentVariableW(at + COUNT(prefix) - 1, value + 1);
        SetEnvironmentVariableW(at, NULL);
        *value = L'=';
    }
    FreeEnvironmentStringsW(block);
}

static void tell(const wchar_t *path, DWORD code)
{
    char digits[16];
    DWORD written;
    HANDLE file = CreateFileW(path, GENERIC_WRITE, FILE_SHARE_READ, NULL, CREATE_ALWAYS, 0, NULL);
    if (file == INVALID_HANDLE_VALUE) broken(path);
    int size = sprintf(digits, "%lu", code);
    if (!WriteFile(file, digits, size, &written, NULL)) broken(path);
    CloseHandle(file);
}

int wmain(void)
{
    static const wchar_t *const ours[] = {L"LAB_LINE", L"LAB_PLAIN", L"LAB_DIRECTORY", L"LAB_CODE"};
    wchar_t *line = variable(ours[0]), *plain = variable(ours[1]), *directory = variable(ours[2]);
    wchar_t *code_file = variable(ours[3]), *given;
    JOBOBJECT_EXTENDED_LIMIT_INFORMATION limits = {0};
    STARTUPINFOW start = {.cb = sizeof start, .dwFlags = STARTF_USESTDHANDLES};
    PROCESS_INFORMATION process;
    DWORD code;

    for (size_t each = 0; each < COUNT(ours); each++) SetEnvironmentVariableW(ours[each], NULL);
    take_variables();
    given = calloc(wcslen(line) + 64, sizeof *given);
    if (!given) broken(L"memory");
    swprintf(given, wcslen(line) + 64, *plain ? L"%ls" : L"C:\\windows\\system32\\cmd.exe /s /c \"%ls\"", line);

    HANDLE job = CreateJobObjectW(NULL, NULL);
    limits.BasicLimitInformation.LimitFlags = JOB_OBJECT_LIMIT_KILL_ON_JOB_CLOSE | JOB_OBJECT_LIMIT_BREAKAWAY_OK;
    if (!SetInformationJobObject(job, JobObjectExtendedLimitInformation, &limits, sizeof limits)) broken(L"job");
    start.hStdInput = GetStdHandle(STD_INPUT_HANDLE);
    start.hStdOutput = GetStdHandle(STD_OUTPUT_HANDLE);
    start.hStdError = GetStdHandle(STD_ERROR_HANDLE);
    const wchar_t *folder = *directory ? directory : NULL;
    if (!CreateProcessW(NULL, given, NULL, NULL, TRUE, CREATE_SUSPENDED, NULL, folder, &start, &process)) {
        say(STD_ERROR_HANDLE, L"lab: cannot start %ls (%lu)", given, GetLastError());
        tell(code_file, GetLastError());
        return 1;
    }
    if (!AssignProcessToJobObject(job, process.hProcess)) broken(L"job of the command");
    ResumeThread(process.hThread);
    WaitForSingleObject(process.hProcess, INFINITE);
    if (!GetExitCodeProcess(process.hProcess, &code)) broken(L"exit code");
    tell(code_file, code);
    return 0;
}
