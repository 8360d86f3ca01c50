(() => {
  const sheet = JSON.parse(document.getElementById("sheet").textContent);
  const task = Object.fromEntries(sheet.tasks.map((one) => [one.name, one]));
  const rows = [...document.querySelectorAll("tr[data-task]")];
  const fields = [...document.querySelectorAll("[data-field]")];
  const said = document.getElementById("said");
  let changed = false;

  const part = (row, name) => row.querySelector(`[data-part=${name}]`);
  const ticks = (row) => [...row.querySelectorAll("[data-part=subtask]")];
  const where = (row) => `${task[row.dataset.task].title}, ${row.dataset.variant}, rollout ${row.dataset.number}`;
  const tell = (text, bad) => { said.textContent = text; said.classList.toggle("bad", Boolean(bad)); };

  const record = (row) => ({
    task: row.dataset.task, variant: row.dataset.variant, number: Number(row.dataset.number),
    completed: ticks(row).map((tick) => tick.checked), failure: part(row, "failure").value, note: part(row, "note").value,
  });

  const problem = (row) => {
    if (!part(row, "done").checked) return "";
    const { completed, failure } = record(row), whole = completed.every(Boolean);
    if (whole && failure) return "all subtasks are ticked, and there is a class of failure";
    return !whole && !failure ? "a subtask failed: choose a class of failure" : "";
  };

  const show = (row) => {
    row.classList.toggle("done", part(row, "done").checked);
    row.classList.toggle("wrong", problem(row) !== "");
  };

  const collect = () => ({
    format: sheet.format, ...Object.fromEntries(fields.map((field) => [field.dataset.field, field.value])),
    tasks: sheet.tasks, rollouts: rows.filter((row) => part(row, "done").checked).map(record),
  });

  const check = () => {
    const policy = fields.find((field) => field.dataset.field === "policy");
    if (!policy.value.trim()) return ["Fill in 'Policy' first.", policy];
    const wrong = rows.find((row) => problem(row));
    if (wrong) return [`${where(wrong)}: ${problem(wrong)}.`, part(wrong, "failure")];
    if (!rows.some((row) => part(row, "done").checked)) return ["No rollout is ticked as done.", part(rows[0], "done")];
    return null;
  };

  const save = () => {
    const wrong = check();
    if (wrong) { tell(wrong[0], true); wrong[1].focus(); return; }
    const form = collect(), link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([JSON.stringify(form, null, 1)], { type: "application/json" }));
    link.download = `rollouts_${form.policy.trim().replace(/[^\w.-]+/g, "_")}.json`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
    changed = false;
    tell(`${form.rollouts.length} of ${rows.length} rollouts, saved as ${link.download}.`);
  };

  const fill = (form) => {
    if (form.format !== sheet.format || JSON.stringify(form.tasks) !== JSON.stringify(sheet.tasks))
      throw new Error("it is of other tasks than this form");
    for (const field of fields) field.value = form[field.dataset.field] ?? "";
    for (const row of rows) {
      const { task: name, variant, number } = record(row);
      const kept = form.rollouts.find((one) => one.task === name && one.variant === variant && one.number === number);
      part(row, "done").checked = Boolean(kept);
      ticks(row).forEach((tick, i) => { tick.checked = Boolean(kept && kept.completed[i]); });
      part(row, "failure").value = kept ? kept.failure : "";
      part(row, "note").value = kept ? kept.note : "";
      show(row);
    }
  };

  for (const row of rows) {
    row.addEventListener("input", (event) => {
      if (event.target.dataset.part !== "done") part(row, "done").checked = true;
      changed = true;
      show(row);
    });
    show(row);
  }
  for (const field of fields) field.addEventListener("input", () => { changed = true; });
  document.getElementById("save").addEventListener("click", save);
  document.getElementById("open").addEventListener("change", async (event) => {
    const [file] = event.target.files;
    if (!file) return;
    try { fill(JSON.parse(await file.text())); changed = false; tell(`${file.name} is open.`); }
    catch (error) { tell(`${file.name} can't be opened: ${error.message}.`, true); }
    event.target.value = "";
  });
  window.addEventListener("beforeunload", (event) => { if (changed) event.preventDefault(); });
  window.rollouts = { collect, fill, check };
})();
