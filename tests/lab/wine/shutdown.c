/* shutdown.exe: hands its words to the lab's power switch (labd/backend_wine.py), which listens at LAB_POWER.
 * The answer is the exit code and what Windows prints; the switch knows what of shutdown the lab has.
 */
#include "lab.h"
#include <ws2tcpip.h>

int wmain(int count, wchar_t **words)
{
    wchar_t *port = variable(L"LAB_POWER"), said[1024] = L"";
    char octets[4096] = "";
    WSADATA data;
    struct sockaddr_in address = {.sin_family = AF_INET};
    int size = 0, got;

    for (int each = 1; each < count; each++) {
        char word[1024];
        if (!WideCharToMultiByte(CP_UTF8, 0, words[each], -1, word, sizeof word, NULL, NULL)) broken(L"a word");
        if (strlen(octets) + strlen(word) + 3 > sizeof octets) broken(L"too many words");
        strcat(octets, each > 1 ? "\t" : "");
        strcat(octets, word);
    }
    strcat(octets, "\n");
    if (WSAStartup(MAKEWORD(2, 2), &data)) broken(L"sockets");
    address.sin_port = htons((unsigned short)_wtoi(port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    SOCKET sock = socket(AF_INET, SOCK_STREAM, 0);
    if (!*port || connect(sock, (struct sockaddr *)&address, sizeof address)) broken(L"the power switch");
    send(sock, octets, strlen(octets), 0);
    const int most = sizeof octets - 1;
    while (size < most && (got = recv(sock, octets + size, most - size, 0)) > 0) size += got;
    octets[size] = 0;
    char *tab = strchr(octets, '\t');
    if (!tab) broken(L"the power switch's answer");
    MultiByteToWideChar(CP_UTF8, 0, tab + 1, -1, said, COUNT(said) - 1);
    if (*said) say(STD_ERROR_HANDLE, L"%ls", said);
    return (int)strtoul(octets, NULL, 10);
}
