// What the page does by itself: keys, which buttons may be pressed, the next prompt after a vote, copying and saving.
(() => {
  const VOTE_KEYS = {ArrowLeft: 'left', ArrowRight: 'right', ArrowUp: 'tie', ArrowDown: 'both_bad'};
  const FIELDS = 'input, textarea, select, [contenteditable=true], [role=tab], [role=listbox], [role=slider], [role=radio]';
  const ADVANCE_MS = 1500;

  const buttonOf = id => {
    const element = document.getElementById(id);
    return element && (element.matches('button') ? element : element.querySelector('button'));
  };
  const press = id => {
    const button = buttonOf(id);
    if (!button || button.disabled) return false;
    button.click();
    return true;
  };

  // Keys -------------------------------------------------------------------------------------------------------------

  document.addEventListener('keydown', event => {
    if (event.altKey || event.ctrlKey || event.metaKey) return;
    const field = event.target.closest ? event.target.closest(FIELDS) : null;
    if (event.key === 'n' && !field) { press('mf-next'); return; }
    // In an empty prompt the arrow keys move no cursor, so they can vote.
    const isEmptyPrompt = field && field.matches('#mf-prompt textarea') && !field.value;
    const choice = VOTE_KEYS[event.key];
    if (!choice || event.shiftKey || (field && !isEmptyPrompt)) return;
    const button = buttonOf('mf-vote-' + choice);
    if (button && button.offsetParent && press(button.id)) event.preventDefault();  // not from another tab
  });

  // Controls ---------------------------------------------------------------------------------------------------------

  const setAttributes = (element, attributes) => {
    if (!element) return;
    for (const [name, value] of Object.entries(attributes))
      if (element.getAttribute(name) !== value) element.setAttribute(name, value);
  };
  const setEnabled = (id, isEnabled) => {
    const button = buttonOf(id);
    if (button) { button.disabled = !isEnabled; button.setAttribute('aria-disabled', String(!isEnabled)); }
    return button;
  };
  // The prompt is below the answers, and on a phone the keyboard covers them, so the page goes back to them.
  const showAnswers = () => {
    if (matchMedia('(pointer: coarse)').matches) document.activeElement.blur();
    document.getElementById('mf-status').scrollIntoView({block: 'nearest'});
  };
  let lastVote = null;
  let wasSpeaking = false;
  // The status carries what may be pressed. Gradio would rebuild each button in every open page for it.
  const applyControls = () => {
    const carrier = document.querySelector('#mf-status [data-mf]');
    if (!carrier) return;
    const controls = JSON.parse(carrier.dataset.mf);
    document.body.dataset.mfSides = controls.sides;
    // A screen reader reads the status when it changes. Two answers at once, word by word, would be noise.
    setAttributes(document.getElementById('mf-status'), {'aria-live': 'polite', 'aria-atomic': 'true'});
    for (const [side, label] of [...'ABCD'].entries())
      setAttributes(document.querySelector(`#mf-chat-${side} [role=log]`),
        {'aria-label': `Answer ${label}`, 'aria-live': 'off', tabindex: '0'});
    const auto = document.querySelector('#mf-auto input');
    if (controls.voted !== null && lastVote === null && auto && auto.checked)
      setTimeout(() => press('mf-next'), ADVANCE_MS);
    lastVote = controls.voted;
    if (controls.is_speaking && !wasSpeaking) { showAnswers(); picturesSent(); }
    document.body.dataset.mfPictures = controls.takes_pictures;
    wasSpeaking = controls.is_speaking;
    for (const choice of Object.values(VOTE_KEYS)) {
      const button = setEnabled('mf-vote-' + choice, controls.can_vote);
      if (!button) continue;
      button.classList.toggle('mf-voted', controls.voted === choice);
      button.setAttribute('aria-pressed', String(controls.voted === choice));
    }
    setEnabled('mf-reveal', controls.can_show_names);
    setEnabled('mf-stop', controls.is_speaking);
    setEnabled('mf-explain', controls.voted !== null);
    for (const id of ['mf-send', 'mf-new', 'mf-next']) setEnabled(id, !controls.is_speaking);
    for (const id of ['mf-retry', 'mf-edit', 'mf-undo', 'mf-differ', 'mf-export', 'mf-share'])
      setEnabled(id, controls.has_turn && !controls.is_speaking);
  };

  // Focus and open details -------------------------------------------------------------------------------------------

  let isPromptFocused = false;
  // The browser's own autofocus scrolls the page down to the prompt. A phone opens no keyboard before it is wanted.
  const focusPromptOnce = () => {
    const prompt = document.querySelector('#mf-prompt textarea');
    if (isPromptFocused || !prompt || !prompt.offsetParent) return;
    isPromptFocused = true;
    if (document.activeElement === document.body && !matchMedia('(pointer: coarse)').matches)
      prompt.focus({preventScroll: true});
  };
  const openDetails = new Set();
  // A click is noted before it opens or closes: the toggle event comes later, when new standings may have replaced the element.
  document.addEventListener('click', event => {
    const details = event.target.closest && event.target.closest('summary')?.parentElement;
    if (details?.matches('details[id]')) openDetails[details.open ? 'delete' : 'add'](details.id);
  }, true);
  // New standings replace the whole table; what the reader has opened stays open.
  const reopenDetails = () => {
    for (const id of openDetails) {
      const details = document.getElementById(id);
      if (details && !details.open) details.open = true;
    }
  };

  new MutationObserver(() => { applyControls(); focusPromptOnce(); reopenDetails(); }).observe(
    document.documentElement, {subtree: true, childList: true, attributes: true, attributeFilter: ['data-mf']});

  // Pictures ---------------------------------------------------------------------------------------------------------

  const MOST_PICTURES = 4;
  const LARGEST_SIDE = 1024;
  const KEPT_BYTES = 600_000;
  const MOST_CHARACTERS = 6_000_000;  // of all data URLs; the server refuses larger requests
  let picked = [];
  let lastSent = [];
  let isSending = false;
  const asUrl = file => new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
  // Photos are scaled here, as the server would do, so that they need not be sent whole.
  const readPicture = async file => {
    const bitmap = await createImageBitmap(file);
    const scale = Math.min(1, LARGEST_SIDE / Math.max(bitmap.width, bitmap.height));
    if (scale === 1 && file.size <= KEPT_BYTES) return asUrl(file);
    const canvas = document.createElement('canvas');
    canvas.width = Math.max(1, Math.round(bitmap.width * scale));
    canvas.height = Math.max(1, Math.round(bitmap.height * scale));
    const context = canvas.getContext('2d');
    context.fillStyle = 'white';
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL('image/jpeg', 0.95);
  };
  const showPicked = fault => {
    const list = document.getElementById('mf-picked');
    if (!list) return;
    list.replaceChildren(...picked.map((url, number) => {
      const button = document.createElement('button');
      button.type = 'button';
      button.setAttribute('aria-label', `Remove picture ${number + 1}`);
      button.dataset.picture = number;
      button.append(Object.assign(document.createElement('img'), {src: url, alt: `chosen picture ${number + 1}`}), '×');
      return button;
    }));
    document.getElementById('mf-picker-fault').textContent = fault || '';
  };
  const addPictures = async files => {
    let fault = '';
    for (const file of files) {
      if (picked.length >= MOST_PICTURES) { fault = `A prompt takes at most ${MOST_PICTURES} pictures.`; break; }
      try {
        const url = await readPicture(file);
        if (picked.join('').length + url.length > MOST_CHARACTERS) fault = 'The pictures are too large together.';
        else picked.push(url);
      } catch { fault = `${file.name} is not a picture that can be read.`; }
    }
    showPicked(fault);
  };
  document.addEventListener('change', async event => {
    if (!event.target.matches?.('.mf-picker input')) return;
    const files = [...event.target.files];
    event.target.value = '';  // so that the same file can be chosen again
    await addPictures(files);
  });
  document.addEventListener('paste', event => {
    const files = [...(event.clipboardData?.files ?? [])].filter(file => file.type.startsWith('image/'));
    if (!files.length || !event.target.closest?.('#mf-prompt') || document.body.dataset.mfPictures !== 'true') return;
    event.preventDefault();
    addPictures(files);
  });
  document.addEventListener('click', event => {
    const button = event.target.closest?.('#mf-picked button');
    if (button) { picked.splice(Number(button.dataset.picture), 1); showPicked(); }
    if (event.target.closest?.('#mf-edit') && !picked.length) { picked = lastSent; showPicked(); }
    if (event.target.closest?.('#mf-next, #mf-retry, #mf-edit, #mf-undo, #mf-new')) isSending = false;
    if (event.target.closest?.('#mf-next, #mf-edit, #mf-undo, #mf-new')) lastSent = [];
  });
  window.mfPictures = () => { isSending = true; return picked; };
  // A refused prompt stays in its field, and so do its pictures.
  const picturesSent = () => {
    if (!isSending) return;
    [lastSent, picked, isSending] = [picked, [], false];
    showPicked();
  };

  // Copy, save, theme ------------------------------------------------------------------------------------------------

  // The clipboard API exists on https and localhost alone; elsewhere the text is selected and copied.
  const copyText = async text => {
    if (navigator.clipboard) return navigator.clipboard.writeText(text);
    const field = document.body.appendChild(document.createElement('textarea'));
    field.value = text; field.select();
    document.execCommand('copy');
    field.remove();
  };
  document.addEventListener('click', async event => {
    const button = event.target.closest && event.target.closest('button[data-copy]');
    if (!button) return;
    await copyText(button.dataset.copy);
    button.textContent = 'Copied';
    setTimeout(() => { button.textContent = 'Copy'; }, 2000);
  });
  window.mfPickVersion = (element, trigger) => element.addEventListener('click', event => {
    const button = event.target.closest('button[data-version]');
    if (button) trigger('click', {version: button.dataset.version});
  });
  window.mfSave = (name, text) => {
    const link = document.createElement('a');
    link.href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
    link.download = name; link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  };
  window.mfTheme = () => {
    const url = new URL(window.location);
    url.searchParams.set('__theme', document.body.classList.contains('dark') ? 'light' : 'dark');
    window.location.href = url.href;
  };
})();
