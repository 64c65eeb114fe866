"use strict";
(() => {
  const csrf = document.querySelector('meta[name="csrf"]').content;
  const send = (url, body) =>
    fetch(url, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": csrf },
      body: JSON.stringify(body),
    });

  const review = document.getElementById("review");
  if (review) {
    const said = document.getElementById("said");
    review.addEventListener("submit", async (event) => {
      event.preventDefault();
      const given = new FormData(review);
      let answer;
      try {
        answer = await send(review.dataset.url, {
          state: given.get("state"),
          note: given.get("note"),
          version: Number(review.dataset.version),
        });
      } catch (error) {
        said.textContent = "Not kept: the service does not answer.";
        return;
      }
      const body = await answer.json().catch(() => ({}));
      if (answer.ok) {
        review.dataset.version = body.version;
        said.textContent = "Kept.";
      } else if (answer.status === 409) {
        said.textContent = `Not kept: ${body.who} said "${body.state}" meanwhile. Reload to see it.`;
      } else {
        said.textContent = "Not kept: reload the page and try again.";
      }
    });
  }

  const again = document.getElementById("again");
  if (again) {
    again.addEventListener("click", async () => {
      await send(again.dataset.url, {});
      location.reload();
    });
  }

  const logout = document.getElementById("logout");
  if (logout) {
    logout.addEventListener("click", async () => {
      await send("/logout", {});
      location.href = "/login";
    });
  }

  const search = document.getElementById("search");
  const only = document.getElementById("only");
  const shown = document.getElementById("shown");
  if (search) {
    const rows = [...document.querySelectorAll("#studies tr[data-review]")];
    const filter = () => {
      const words = search.value.toLowerCase();
      let count = 0;
      for (const row of rows) {
        const fits = row.textContent.toLowerCase().includes(words);
        row.hidden = !(fits && (!only.value || row.dataset.review === only.value));
        count += row.hidden ? 0 : 1;
      }
      const every = count === rows.length;
      shown.textContent = every ? `${count} studies` : `${count} of ${rows.length} studies`;
    };
    search.addEventListener("input", filter);
    only.addEventListener("change", filter);
  }
})();
