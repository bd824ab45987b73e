
  // ---- the blind vote: one pair after another, of two models, in an order that chance decides
  const ballots = `votes ${data.id}`;
  const isVote = (vote) =>
    vote !== null && typeof vote === "object" && [vote.first, vote.second, vote.left].every((n) => n in data.models) &&
    vote.prompt in data.prompts && vote.sampler in data.samplings && vote.seed in data.seeds &&
    [vote.first, vote.second, null].includes(vote.preferred);
  const recalled = recall(ballots);
  const votes = Array.isArray(recalled) ? recalled.filter(isVote) : [];
  const fixed = data.models.findIndex((model) => model.isBase);
  const compared = { first: data.chosen[0] ?? data.models.length - 1, second: data.chosen[1] ?? Math.max(0, fixed) };
  let ballot = null;
  let isTallied = false;

  const isOfPair = (vote) =>
    (vote.first === compared.first && vote.second === compared.second) || (vote.first === compared.second && vote.second === compared.first);
  const placeOf = (vote) => [vote.prompt, vote.sampler, vote.seed].join(" ");
  const inPage = (place, model) => {
    const found = cellAt({ ...place, model });
    return found !== undefined && typeof found.reference === "number" ? found.reference : null;
  };

  /** Every prompt, sampler and seed of which the page has an image of both models. */
  function places() {
    const found = [];
    if (compared.first === compared.second) return found;
    data.prompts.forEach((_, prompt) =>
      data.samplings.forEach((_, sampler) =>
        data.seeds.forEach((_, seed) => {
          const place = { prompt, sampler, seed };
          if (inPage(place, compared.first) !== null && inPage(place, compared.second) !== null) found.push(place);
        }),
      ),
    );
    return found;
  }

  function nextBallot() {
    const judged = new Set(votes.filter(isOfPair).map(placeOf));
    const open = places().filter((place) => !judged.has(placeOf(place)));
    ballot = open.length ? dealt(open[Math.floor(Math.random() * open.length)]) : null;
  }
  const dealt = (place) => ({ ...place, left: Math.random() < 0.5 ? compared.first : compared.second });
  const rightOf = (dealt) => (dealt.left === compared.first ? compared.second : compared.first);

  function cast(choice) {
    if (!ballot) return;
    const preferred = { left: ballot.left, right: rightOf(ballot), same: null }[choice];
    votes.push({ ...compared, ...ballot, preferred });
    remember(ballots, votes);
    isTallied = false;
    nextBallot();
    showVote();
  }

  /** The 95 % interval of a share (E. B. Wilson, Journal of the American Statistical Association 1927). */
  function wilson(hits, count) {
    const z = 1.959964;
    const [share, weight] = [hits / count, (z * z) / count];
    const centre = (share + weight / 2) / (1 + weight);
    const reach = (z / (1 + weight)) * Math.sqrt((share * (1 - share)) / count + weight / (4 * count));
    return [centre - reach, centre + reach];
  }

  function tally() {
    const own = votes.filter(isOfPair);
    const [wins, losses] = [compared.first, compared.second].map((model) => own.filter((vote) => vote.preferred === model).length);
    const [first, second, decided] = [data.models[compared.first].label, data.models[compared.second].label, wins + losses];
    const counts = say("vote.result", { first, second, wins, losses, ties: own.length - decided });
    if (!decided) return `${counts} ${say("vote.undecided")}`;
    const [share, low, high] = [wins / decided, ...wilson(wins, decided)].map((each) => (100 * each).toFixed(0));
    return `${counts} ${say("vote.share", { first, share, decided, low, high })}`;
  }

  function showVote() {
    const count = places().length;
    get("ballot").hidden = !ballot;
    if (ballot) {
      get("vote-question").textContent = say("vote.question", { prompt: data.prompts[ballot.prompt].text });
      get("vote-left").src = source(inPage(ballot, ballot.left));
      get("vote-right").src = source(inPage(ballot, rightOf(ballot)));
    }
    const done = votes.filter(isOfPair).length;
    const words = [count ? say("vote.count", { done, all: count }) : say("vote.none")];
    if (count && !ballot) words.push(say("vote.done"));
    get("vote-count").textContent = words.join(" ");
    get("vote-undo").disabled = !done;
    get("vote-show").disabled = !done;
    get("vote-download").disabled = !votes.length;
    get("vote-tally").textContent = isTallied && done ? tally() : "";
  }

  function takeBack() {
    const last = votes.findLastIndex(isOfPair);
    const [{ prompt, sampler, seed }] = votes.splice(last, 1);
    remember(ballots, votes);
    isTallied = false;
    ballot = dealt({ prompt, sampler, seed });
    showVote();
  }

  function votesAsCsv() {
    const quoted = (value) => `"${String(value).replaceAll('"', '""')}"`;
    const label = (model) => (model === null ? "" : data.models[model].label);
    const rows = votes.map((vote) => [
      label(vote.first), label(vote.second), data.prompts[vote.prompt].text, data.samplings[vote.sampler],
      data.seeds[vote.seed], label(vote.left), label(vote.preferred),
    ]);
    const head = ["first", "second", "prompt", "sampler", "seed", "left", "preferred"];
    return `${[head, ...rows].map((row) => row.map(quoted).join(",")).join("\n")}\n`;
  }

  for (const side of ["first", "second"]) {
    const select = get(`vote-${side}`);
    data.models.forEach((model, number) =>
      select.append(element("option", { value: number, textContent: model.label, selected: number === compared[side] })),
    );
    select.addEventListener("change", () => {
      compared[side] = Number(select.value);
      isTallied = false;
      nextBallot();
      showVote();
    });
  }
  all("[data-vote]").forEach((each) => each.addEventListener("click", () => cast(each.dataset.vote)));
  get("vote").addEventListener("keydown", (event) => {
    const choice = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "same" }[event.key];
    if (!choice || event.target.tagName === "SELECT" || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    cast(choice);
  });
  get("vote-undo").addEventListener("click", takeBack);
  get("vote-show").addEventListener("click", () => {
    isTallied = true;
    showVote();
  });
  get("vote-download").addEventListener("click", () => {
    const address = URL.createObjectURL(new Blob([votesAsCsv()], { type: "text/csv" }));
    element("a", { href: address, download: "votes.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  });
  nextBallot();
  redraws.push(showVote);

  // ---- all of it, in the language that was chosen last
  speak(recall("language"));
