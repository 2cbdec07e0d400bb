"use strict";
// Shows the sequences of the page. The data is untrusted: it is only ever set as text, never
// parsed as HTML.
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const TURN_COLOURS = 3;
  let shown = []; // the sequences that pass the filters
  let index = 0;
  let current = null; // the element of the token that is described

  function make(tag, className, text) {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function count(number, noun) {
    return `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
  }

  function sizeOf(turn) {
    return turn.ranges.reduce((sum, [start, stop]) => sum + stop - start, 0);
  }

  // Returns the weight of each token of a turn as text: 1/145, 0.5/145.
  function weightOf(turn) {
    const own = (turn.weight ?? 1).toLocaleString("en", { maximumFractionDigits: 4 });
    return `${own}/${sizeOf(turn).toLocaleString("en")}`;
  }

  // Returns the index of the turn that trains each position of a sequence.
  function turnsByPosition(sequence) {
    const turns = new Map();
    sequence.turns.forEach((turn, number) => {
      for (const [start, stop] of turn.ranges)
        for (let position = start; position < stop; position++) turns.set(position, number);
    });
    return turns;
  }

  // Tokens that spell one character together are one element: the later ones have no text.
  function groupTokens(shownDocument) {
    const groups = [];
    shownDocument.tokens.forEach((number, offset) => {
      const [id, text, isHeader] = data.vocabulary[number];
      if (text === "" && groups.length) groups.at(-1).ids.push(id);
      else groups.push({ ids: [id], text, isHeader, position: shownDocument.start + offset });
    });
    return groups;
  }

  function marksOf(sequence, turn) {
    return sequence.problems.filter((one) => one.turn === turn).map(({ mark }) => mark);
  }

  function appendNotes(text, sequence, number) {
    const turn = sequence.turns[number];
    const size = sizeOf(turn);
    text.append(make("span", "note",
      `message ${turn.message}: ${count(size, "token")} × ${weightOf(turn)}`));
    for (const mark of marksOf(sequence, number))
      if (mark !== data.straddle) text.append(make("span", "note problem", mark));
  }

  function renderDocument(sequence, number, turns) {
    const shownDocument = sequence.documents[number];
    const inDocument = sequence.turns.filter((turn) => turn.document === number).length;
    const element = make("div", "document");
    element.append(make("h4", "", `Document ${number + 1} of ${sequence.documents.length}: dialogue ` +
      `${shownDocument.dialogue.toLocaleString("en")}, ${count(shownDocument.length, "token")}, ${count(inDocument, "turn")}`));
    const text = make("div", "text");
    text.tabIndex = 0;
    text.dir = "auto";
    text.setAttribute("role", "group");
    text.setAttribute("aria-label", `Text of document ${number + 1}`);
    for (const group of groupTokens(shownDocument)) {
      const turn = turns.get(group.position);
      const trained = turn !== undefined;
      const isFirst = trained && group.position === sequence.turns[turn].ranges[0][0];
      if (isFirst && marksOf(sequence, turn).includes(data.straddle))
        text.append(make("span", "note problem", data.straddle));
      const visible = trained ? group.text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t") : group.text;
      const token = make("span", trained ? `tok trained turn-${turn % TURN_COLOURS}` : "tok", visible);
      if (group.isHeader) token.classList.add("header");
      token.dataset.position = group.position;
      token.dataset.ids = group.ids.join(" ");
      if (trained) token.dataset.turn = turn;
      text.append(token);
      if (trained && sequence.turns[turn].ranges.at(-1)[1] <= group.position + group.ids.length)
        appendNotes(text, sequence, turn);
    }
    const left = shownDocument.length - shownDocument.tokens.length;
    if (left) text.append(make("span", "note", `${count(left, "more token")} not in this file`));
    element.append(text);
    return element;
  }

  function render() {
    const sequence = shown[index];
    current = null;
    find("token").textContent = "Point at a token, or tap it, to see its id and weight.";
    find("previous").disabled = index <= 0;
    find("next").disabled = index >= shown.length - 1;
    find("documents").replaceChildren();
    find("problems").replaceChildren();
    if (!sequence) {
      find("title").textContent = "No sequence has this problem.";
      return;
    }
    find("pick").value = String(index);
    const trained = sequence.turns.reduce((sum, turn) => sum + sizeOf(turn), 0);
    find("title").textContent = `Sequence ${sequence.number.toLocaleString("en")}: ` +
      `${count(sequence.documents.length, "document")}, ${count(sequence.turns.length, "turn")}, ` +
      `${count(trained, "loss token")}, ${count(sequence.padding, "position")} of padding`;
    const numbers = new Map();
    for (const { mark } of sequence.problems) numbers.set(mark, (numbers.get(mark) ?? 0) + 1);
    for (const [mark, number] of numbers)
      find("problems").append(make("li", "",
        `⚠ ${mark}${number > 1 ? ` (${number})` : ""}: ${data.explanations[mark]}`));
    const turns = turnsByPosition(sequence);
    const documents = sequence.documents.map((_, number) => renderDocument(sequence, number, turns));
    find("documents").append(...documents);
  }

  function describe(token) {
    current?.classList.remove("current");
    current = token;
    token.classList.add("current");
    const { position, ids, turn } = token.dataset;
    const parts = [`position ${Number(position).toLocaleString("en")}`, `id ${ids.replaceAll(" ", " + ")}`];
    if (turn === undefined) parts.push("not trained");
    else {
      const own = shown[index].turns[turn];
      parts.push(`turn ${Number(turn) + 1} (message ${own.message})`);
      parts.push(`weight ${weightOf(own)} = ${((own.weight ?? 1) / sizeOf(own)).toPrecision(3)}`);
    }
    find("token").textContent = parts.join(" · ");
  }

  function filter() {
    const marks = [...document.querySelectorAll("input[name=mark]:checked")].map((box) => box.value);
    shown = data.sequences.filter(
      ({ problems }) => !marks.length || problems.some(({ mark }) => marks.includes(mark)),
    );
    index = 0;
    find("pick").replaceChildren(...shown.map((sequence, number) => {
      const option = make("option", "", `sequence ${sequence.number.toLocaleString("en")} (${number + 1} of ${shown.length})` +
        (sequence.problems.length ? " ⚠" : ""));
      option.value = String(number);
      return option;
    }));
    render();
  }

  function show(number) {
    if (number < 0 || number >= shown.length) return;
    index = number;
    render();
  }

  // Moves to the next or previous token of the text that has the focus.
  function move(text, step) {
    const tokens = [...text.querySelectorAll(".tok")];
    const at = tokens.indexOf(current);
    const token = tokens[at < 0 ? 0 : Math.min(Math.max(at + step, 0), tokens.length - 1)];
    if (!token) return;
    describe(token);
    token.scrollIntoView({ block: "nearest" });
  }

  const describeTarget = (event) => {
    const token = event.target.closest?.(".tok");
    if (token) describe(token);
  };
  find("documents").addEventListener("mouseover", describeTarget);
  find("documents").addEventListener("click", describeTarget);
  find("documents").addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    move(event.target, step);
  });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
    const step = { n: 1, p: -1 }[event.key];
    if (step) show(index + step);
  });
  find("controls").addEventListener("submit", (event) => event.preventDefault());
  find("controls").addEventListener("change", (event) => {
    if (event.target.name === "mark") filter();
    if (event.target.id === "pick") show(Number(event.target.value));
    if (event.target.id === "boundaries")
      find("documents").classList.toggle("boundaries", event.target.checked);
  });
  find("previous").addEventListener("click", () => show(index - 1));
  find("next").addEventListener("click", () => show(index + 1));
  find("browser").hidden = false;
  filter();
})();
