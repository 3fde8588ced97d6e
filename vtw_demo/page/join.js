// Gradio closes its stream of results when the last event ends, and opens one for a new event where none is open. An
// event that is joined while the word that the stream is closed is still on its way would wait for ever: so the answer
// that it has joined comes a moment later than that word.
{
  const ask = window.fetch;
  window.fetch = async (...given) => {
    const answer = await ask(...given);
    const address = String(given[0]?.url ?? given[0]);
    if (address.includes("/queue/join")) await new Promise((go) => setTimeout(go, 100));
    return answer;
  };
}
