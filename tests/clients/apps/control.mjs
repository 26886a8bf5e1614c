// The side door of a sample app, used by tests only: what has happened so far, and the gates that hold
// calls. Plain HTTP, so that a person can look with curl while a test hangs.

/** Answers a request under /control/ and says whether it was one. */
export function control(journal, request, response) {
  const url = new URL(request.url, 'http://app');
  if (!url.pathname.startsWith('/control/')) return false;
  const answer = (status, body) => {
    response.writeHead(status, { 'content-type': 'application/json' });
    response.end(JSON.stringify(body));
  };
  if (url.pathname === '/control/events') {
    // A long poll: the answer comes with the next event, and never if the client has gone.
    journal.after(Number(url.searchParams.get('after') ?? 0)).then((events) => answer(200, events));
  } else if (url.pathname === '/control/open') {
    journal.open(url.searchParams.get('gate'));
    answer(200, {});
  } else {
    answer(404, { error: 'no such control' });
  }
  return true;
}
