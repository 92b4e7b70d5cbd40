"""Which of the node's answers are files of the grid, and what a browser may do with them.  (pure)

A file may be HTML that somebody wrote to harm who opens it. To a browser all that a gateway answers is of one origin:
its scripts could list, abort and make uploads, and read what the upload page remembers. So files get an origin of
their own, that of nobody: what they send is cross-site, from `null`, and protection.py refuses it. The node's own
pages, among them directories with their forms, keep theirs.

Paths do not tell them apart: /uri/DIRCAP/name may be either. allmydata/web/filenode.py, FileDownloader, does: whatever
gives the bytes of a file says Accept-Ranges, and of the rest only /static/ does, which is on the node's disk.
"""

from __future__ import annotations

from client_shim.gateway.exchange import Headers, RequestHead

#: Scripts run, but as those of an unknown site. Windows that they open are in the same sandbox.
SANDBOX = "sandbox allow-scripts allow-forms allow-modals allow-popups allow-downloads"
#: What is always a file.
_FILES = ("/file/", "/named/")
#: What never is.
_STATIC = "/static/"
#: Chromium shows no PDF in a sandbox. Its scripts, if they are run, know no web page.
_HARMLESS = frozenset({"application/pdf"})


def is_grid_content(head: RequestHead, answer: Headers) -> bool:
    """Whether an answer of the node to this request has bytes of a file of the grid."""
    if head.target.startswith(_STATIC):
        return False
    return head.target.startswith(_FILES) or "accept-ranges" in answer or "content-range" in answer


def policy_for(head: RequestHead, answer: Headers) -> list[tuple[str, str]]:
    """Fields to be added to the node's answer."""
    if not is_grid_content(head, answer):
        return []
    types = {value.partition(";")[0].strip().lower() for value in answer.get_all("content-type")}
    return [] if types and types <= _HARMLESS else [("Content-Security-Policy", SANDBOX)]
