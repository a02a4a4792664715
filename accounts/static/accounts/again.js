// A form of the class "again" submits itself after so many seconds. Without scripts its button does the same.
"use strict";

for (const form of document.querySelectorAll("form.again")) {
    setTimeout(() => form.requestSubmit(), 1000 * form.dataset.seconds);
}
