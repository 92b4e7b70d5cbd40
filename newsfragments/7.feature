The helper erasure-codes with ISA-L where pip or the system has it (pyeclib, libisal2), at many times the speed of
zfec and with the same output, which it checks; its log says which of the two is in use. Helper and client spend a
third less processor time on what they send.
Fast servers no longer wait in turns with the disk of the helper or their own: syncs go on beside writes, and the pushing
lag may become what servers take in a second. On a disk whose syncs take 20 ms an upload is half as fast again.
Helper and storage nodes with the plugin read large messages in larger pieces: a twentieth more throughput.
Clients read a fast pipe, encrypt and send in pieces of 2 MiB (the default of `largest-message`, which was 1 MiB), and
what waits for a socket is not joined over and over: a ninth less of a client's processor time, a twentieth of a helper's.
On a fast link no more than 4 MiB wait between client and helper beyond what fills it: the time from the last byte of an
upload at full speed to its cap is a fifth shorter.
