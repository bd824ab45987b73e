"""The fixed words of the page in English and French, by key. {names} stand for data.

Only what is written here is translated: what an evaluation says (reasons, verdicts, caveats) stays as it was written.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from pipelines.evaluation.result import KINDS

LANGUAGES = ("en", "fr")

_PAGE = {
    "title": ("{title} · evaluation", "{title} · évaluation"),
    "eyebrow": ("filrouge · evaluation", "filrouge · évaluation"),
    "lead": (
        "{models} models, {prompts} prompts, {images} images.",
        "{models} modèles, {prompts} prompts, {images} images.",
    ),
    "lead.embedded": (
        "{images} of them are in this page; the others lie beside it as files.",
        "{images} d'entre elles sont dans cette page ; les autres sont à côté, en fichiers.",
    ),
    "language": ("language", "langue"),
    "language.note": (
        "All sentences are in English.",
        "Les mots fixes de la page sont traduits. Les phrases qui dépendent des données (raisons, verdicts, réserves, "
        "avertissements, noms des modèles) restent en anglais.",
    ),
    "sections": ("sections", "sections"),
    "model": ("model", "modèle"),
    "models": ("models", "modèles"),
    "prompt": ("prompt", "prompt"),
    "prompts": ("prompts", "prompts"),
    "sampler": ("sampler", "échantillonneur"),
    "seed": ("seed", "graine"),
    "seed.of": ("seed {seed}", "graine {seed}"),
    "all": ("all", "tous"),
    "step.of": ("step {step}", "étape {step}"),
    "file": ("file", "fichier"),
    "base": ("base", "base"),
    "tuned": ("tuned", "adapté"),
    "generated": ("generated", "généré"),
    "real": ("real", "réel"),
    "nothing": ("none of this kind", "aucun de ce genre"),
    "section.learning": ("learning", "apprentissage"),
    "section.forgetting": ("forgetting", "oubli"),
    "section.copying": ("copying", "copie"),
    "section.diversity": ("diversity", "diversité"),
    "ring": ("ring", "cercle"),
    "ring.class": ("class", "classe"),
    "ring.related": ("related", "proche"),
    "ring.unrelated": ("unrelated", "sans rapport"),
    "ring.of": ("ring: {ring}", "cercle : {ring}"),
}

_VERDICT = {
    "verdict": ("Verdict", "Verdict"),
    "verdict.rung": ("{rung} of 4: {name}", "{rung} sur 4 : {name}"),
    "verdict.no_rung": ("cannot be judged", "ne peut pas être jugé"),
    "rung.0": ("unchanged", "inchangé"),
    "rung.1": ("moved", "déplacé"),
    "rung.2": ("recognisable", "reconnaissable"),
    "rung.3": ("overlapping", "recouvrant"),
    "rung.4": ("not told apart", "indiscernable"),
    "verdict.note": (
        "Five rungs: unchanged (as the base draws), moved, recognisable (a classifier of real images, which may say "
        "none of these, names the right caption more often than a guess), overlapping (as many real images have a "
        "drawn neighbour as have a real one), not told apart (no classifier tells drawn from real). Green from "
        "overlapping on.",
        "Cinq échelons : inchangé (comme la base), déplacé, reconnaissable (un classifieur d'images réelles, qui peut "
        "dire aucune, nomme la bonne légende plus souvent que le hasard), recouvrant (autant d'images réelles ont une "
        "voisine générée qu'une voisine réelle), indiscernable (aucun classifieur ne distingue généré et réel). Vert à "
        "partir de recouvrant.",
    ),
    "verdict.learnt": ("Learnt", "Appris"),
    "verdict.next": ("Next", "Ensuite"),
    "verdict.forgot": ("Forgot", "Oublié"),
    "verdict.copied": ("Copied", "Copié"),
    "verdict.onset": (
        "Forgets from step {step} on: two checkpoints in a row lie above what chance takes base from base.",
        "Oublie dès l'étape {step} : deux points de reprise de suite dépassent ce que le hasard sépare base de base.",
    ),
    "overview.note": (
        "The same prompts and seeds in every row; real images were held out of training.",
        "Mêmes prompts et mêmes graines à chaque rang ; les images réelles n'ont pas servi à l'entraînement.",
    ),
    "overview.alt": ("one row of images each for {rows}", "un rang d'images pour chacun : {rows}"),
}

_NUMBERS = {
    "numbers": ("Numbers", "Mesures"),
    "trade_off.x": ("forgetting: noise drift on the rings →", "oubli : dérive du bruit sur les cercles →"),
    "trade_off.y": ("learning: skill →", "apprentissage : gain →"),
    "trade_off.alt": (
        "learning against forgetting for {models} models",
        "apprentissage en fonction de l'oubli pour {models} modèles",
    ),
    "trade_off.mark": (
        "{model}: skill {y}, noise drift {x}",
        "{model} : gain {y}, dérive du bruit {x}",
    ),
    "trade_off.base": ("as the base", "comme la base"),
    "trade_off.real": ("as real images through the autoencoder", "comme le réel après l'autoencodeur"),
    "trade_off.note": (
        "Up is better learnt, left is less forgotten. Bars are 95 % intervals; lines join the checkpoints of a run; "
        "rings mark the chosen ones. Point at a mark, or go to it with Tab, to see an image.",
        "En haut, mieux appris ; à gauche, moins oublié. Les barres sont des intervalles à 95 % ; les lignes joignent "
        "les points de reprise d'un entraînement ; un anneau marque ceux qui sont retenus. Survolez une marque, ou "
        "atteignez-la par Tab, pour voir une image.",
    ),
    "scores": ("table of measures", "table des mesures"),
    "measure": ("measure", "mesure"),
    "floor": ("floor", "plancher"),
    "scores.note": (
        "Each number with its 95 % interval and the number of images of its smallest set. Bold: the interval leaves "
        "out what the base, chance or real images would give; pale: it does not, or no verdict is possible.",
        "Chaque nombre avec son intervalle à 95 % et le nombre d'images de son plus petit ensemble. Gras : "
        "l'intervalle exclut ce que donneraient la base, le hasard ou des images réelles ; pâle : il ne l'exclut pas, "
        "ou aucun verdict n'est possible.",
    ),
    "scores.interval": ("{low} to {high}, n {images}", "{low} à {high}, n {images}"),
    "course": ("Course of training", "Cours de l'entraînement"),
    "course.nav": ("Course", "Cours"),
    "course.along": ("along", "selon"),
    "course.steps": ("steps", "étapes"),
    "course.visits": ("image visits", "images vues"),
    "course.epochs": ("epochs", "époques"),
    "course.skill": ("learning: skill", "apprentissage : gain"),
    "course.drift": ("forgetting: noise drift", "oubli : dérive du bruit"),
    "course.loss": ("loss of held-out images, fixed noise", "perte des images mises de côté, bruit fixe"),
    "course.copy_auc": ("copying: AUC", "copie : AUC"),
    "course.unknown": ("not known for these runs", "inconnu pour ces entraînements"),
    "course.note": (
        "Bands are 95 % intervals. The dotted line is the chosen checkpoint.",
        "Les bandes sont des intervalles à 95 %. La ligne pointillée est le point de reprise retenu.",
    ),
    "course.onset": ("{run} forgets from step {step} on.", "{run} oublie dès l'étape {step}."),
    "axis.loss": ("loss", "perte"),
    "axis.step": ("optimiser step", "étape d'optimisation"),
    "axis.image_visits": ("image visits", "images vues"),
    "axis.epochs": ("epochs", "époques"),
    "chart.alt": ("{y} along {x}", "{y} selon {x}"),
}

_IMAGES = {
    "images": ("Images", "Images"),
    "images.noscript": (
        "The grid needs JavaScript. The picture above shows the essentials, and every image lies in the folder images, "
        "listed in images.json.",
        "La grille a besoin de JavaScript. L'image ci-dessus montre l'essentiel, et chaque image se trouve dans le "
        "dossier images, avec sa liste dans images.json.",
    ),
    "images.hint": (
        "Arrow keys move through the grid; Enter opens an image beside another model's of the same prompt and seed.",
        "Les flèches parcourent la grille ; Entrée ouvre une image à côté de celle d'un autre modèle, de mêmes prompt "
        "et graine.",
    ),
    "axes": ("axes of the grid", "axes de la grille"),
    "axes.rows": ("rows", "rangs"),
    "axes.columns": ("columns", "colonnes"),
    "cell.empty": ("not asked", "non demandé"),
    "cell.copy": ("near copy", "quasi-copie"),
    "prompt.negative": ("not: {words}", "sans : {words}"),
    "prompt.base": ("base: {words}", "base : {words}"),
    "prompt.cut": ("{tokens} tokens are not read", "{tokens} jetons ne sont pas lus"),
    "viewer.close": ("close", "fermer"),
    "viewer.beside": ("beside", "à côté de"),
    "viewer.flicker": ("flicker", "clignoter"),
    "viewer.wipe": ("wipe", "volet"),
    "viewer.hint": (
        "Space swaps the two; f flickers; arrow keys go to the next prompt, model or seed; Esc closes.",
        "Espace échange les deux ; f les fait clignoter ; les flèches vont au prompt, au modèle ou à la graine "
        "d'après ; Échap ferme.",
    ),
    "viewer.image": ("{model}: {prompt}, seed {seed}", "{model} : {prompt}, graine {seed}"),
    "viewer.missing": (
        "{model}: {prompt}, seed {seed} (not drawn)",
        "{model} : {prompt}, graine {seed} (non dessinée)",
    ),
    "viewer.facts": ("{facts} — beside {other}", "{facts} — à côté de {other}"),
}

_PAIRS = {
    "forgetting": ("Forgetting, image by image", "L'oubli, image par image"),
    "forgetting.nav": ("Forgetting", "Oubli"),
    "forgetting.note": (
        "Base and tuned model with the same prompt and seed, the pairs that drifted farthest first.",
        "La base et le modèle adapté, mêmes prompt et graine ; les paires qui ont le plus dérivé d'abord.",
    ),
    "forgetting.caption": ("{prompt} · seed {seed} · drift {drift}", "{prompt} · graine {seed} · dérive {drift}"),
    "copies": ("Nearest training images", "Images d'entraînement les plus proches"),
    "copies.nav": ("Copies", "Copies"),
    "copies.note": (
        "The generated images most like a training image, at their best shift and flip; ncc is 1 for a copy. "
        "The difference is black where both are the same, and white where the moved training image does not reach.",
        "Les images générées qui ressemblent le plus à une image d'entraînement, au meilleur décalage et "
        "retournement ; ncc vaut 1 pour une copie. La différence est noire là où les deux sont pareilles, et blanche "
        "là où l'image d'entraînement décalée n'arrive pas.",
    ),
    "copies.unjudged": (
        "Cannot be judged for {runs}: nothing drawn is near the data, so far from training images says nothing.",
        "Ne peut pas être jugé pour {runs} : rien de généré n'est près des données, être loin de l'entraînement ne dit "
        "donc rien.",
    ),
    "copies.held_out": (
        "Held-out real images of {run} reach {most} at most, {middle} in the middle.",
        "Les images réelles mises de côté de {run} atteignent {most} au plus, {middle} au milieu.",
    ),
    "copies.training": ("training", "entraînement"),
    "copies.difference": ("difference", "différence"),
    "copies.difference.alt": ("how far the two differ", "l'écart entre les deux"),
    "copies.nearest": ("the training image nearest to it", "l'image d'entraînement la plus proche"),
    "copies.caption": (
        "{prompt} · seed {seed} · ncc {ncc} · {place} · {pose}",
        "{prompt} · graine {seed} · ncc {ncc} · {place} · {pose}",
    ),
    "copies.moved": ("moved by {shift} px", "décalée de {shift} px"),
    "copies.flagged": ("nearer than 95 % of held-out images", "plus proche que 95 % des images mises de côté"),
    "pair.alt": ("{which}: {prompt}", "{which} : {prompt}"),
}

_WHOLE = {
    "diversity": ("Diversity", "Diversité"),
    "diversity.note": (
        "Measures of how different the images are, with 95 % intervals. The tick is what real images give, or the base "
        "for class coverage.",
        "Mesures de la variété des images, avec des intervalles à 95 %. Le trait est ce que donnent des images "
        "réelles, ou la base pour la couverture des classes.",
    ),
    "classes": ("What a classifier names", "Ce que nomme un classifieur"),
    "classes.nav": ("Classes", "Classes"),
    "classes.note": (
        "A classifier fitted on real training images names the images of each caption, or says none of these, where an "
        "image is nearer to noise than to that caption's training images. The share of each row is "
        "shaded; right answers lie on the diagonal. On held-out real images it errs, too.",
        "Un classifieur ajusté sur les images réelles d'entraînement nomme les images de chaque légende, ou dit aucune "
        "si une image est plus près du bruit que des images d'entraînement de cette légende. La "
        "part dans chaque rang est ombrée ; les bonnes réponses sont sur la diagonale. Sur les images réelles mises de "
        "côté, il se trompe aussi.",
    ),
    "classes.accuracy": (
        "{classifier}: right on {value} [{low}, {high}] of {images} generated images, {real_value} [{real_low}, "
        "{real_high}] of {real_images} held-out real ones.",
        "{classifier} : juste pour {value} [{low}, {high}] de {images} images générées, {real_value} [{real_low}, "
        "{real_high}] de {real_images} images réelles mises de côté.",
    ),
    "classes.asked": ("asked ↓ named →", "demandé ↓ nommé →"),
    "classes.none": ("none of these", "aucune"),
    "classes.real": ("real, right", "réel, juste"),
    "classes.of": ("{right} of {images}", "{right} sur {images}"),
    "between": ("Between two captions", "Entre deux légendes"),
    "between.nav": ("Between", "Entre"),
    "between.note": (
        "Images of a prompt beside the real images of two captions, along the line from the middle of the one (0) to "
        "the middle of the other (1). A stroke is an image; the point is their middle with its 95 % interval.",
        "Les images d'un prompt à côté des images réelles de deux légendes, le long de la droite qui va du milieu de "
        "l'une (0) au milieu de l'autre (1). Un trait est une image ; le point est leur milieu, avec son intervalle à "
        "95 %.",
    ),
    "between.numbers": (
        "{share} of the way from {one} to {other}, and {residual} standard deviations of a real image beside the line; "
        "mixed {mixed}: 0 where each image lies between, 1 where some are of the one and some of the other; "
        "{images} images.",
        "à {share} du chemin de {one} à {other}, et à {residual} écarts-types d'une image réelle de la droite ; "
        "mélange {mixed} : 0 si chaque image est entre les deux, 1 si les unes sont de l'une et les autres de l'autre "
        "; {images} images.",
    ),
    "between.x": ("place along the line", "place sur la droite"),
    "between.alt": (
        "images of {prompt} between real images of {one} and {other}",
        "images de {prompt} entre les images réelles de {one} et de {other}",
    ),
    "profiles": ("Spectra and tones", "Spectres et tons"),
    "profiles.nav": ("Spectra", "Spectres"),
    "profiles.note": (
        "Generated images in colour beside held-out real ones, grey and dashed; all captions count alike. Bands are "
        "95 % intervals of the mean over images.",
        "Les images générées en couleur, à côté des images réelles mises de côté, en gris tireté ; toutes les légendes "
        "comptent autant. Les bandes sont des intervalles à 95 % de la moyenne sur les images.",
    ),
    "profiles.counts": (
        "{generated} generated, {real} real images of each caption, or more",
        "{generated} images générées, {real} réelles pour chaque légende, ou plus",
    ),
    "profile.spectrum": ("power spectrum", "spectre de puissance"),
    "profile.grey": ("grey levels", "niveaux de gris"),
    "profile.red": ("red", "rouge"),
    "profile.green": ("green", "vert"),
    "profile.blue": ("blue", "bleu"),
    "profile.spectrum.x": ("frequency, cycles per px", "fréquence, cycles par px"),
    "profile.spectrum.y": ("power, dB", "puissance, dB"),
    "profile.tone.x": ("black 0 to full 1", "noir 0 à plein 1"),
    "profile.tone.y": ("share of pixels, %", "part des pixels, %"),
    "descriptors": ("Physical descriptors", "Descripteurs physiques"),
    "descriptors.nav": ("Descriptors", "Descripteurs"),
    "descriptors.note": (
        "Distance of generated slices to held-out ones, over that of training to held-out slices: 1 is as near as the "
        "other block of the specimen.",
        "Distance des coupes générées aux coupes mises de côté, rapportée à celle des coupes d'entraînement à ces "
        "dernières : 1 est aussi proche que l'autre bloc de l'éprouvette.",
    ),
    "descriptors.name": ("descriptor", "descripteur"),
    "descriptors.unit": ("unit", "unité"),
    "descriptors.ratio": ("ratio", "rapport"),
    "descriptors.verdict": ("verdict", "verdict"),
    "descriptors.interval": ("{low} to {high}", "{low} à {high}"),
}

_VOTE = {
    "vote": ("Blind vote", "Vote à l'aveugle"),
    "vote.nav": ("Vote", "Vote"),
    "vote.note": (
        "Two models, the same prompt and seed, left and right by chance, without names. Votes stay in this browser. "
        "The tally is shown when you ask for it.",
        "Deux modèles, mêmes prompt et graine, gauche et droite au hasard, sans noms. Les votes restent dans ce "
        "navigateur. Le décompte n'apparaît que sur demande.",
    ),
    "vote.form": ("models to compare", "modèles à comparer"),
    "vote.first": ("one", "l'un"),
    "vote.second": ("other", "l'autre"),
    "vote.left": ("← left", "← gauche"),
    "vote.same": ("↓ same", "↓ pareil"),
    "vote.right": ("right →", "droite →"),
    "vote.left.alt": ("image on the left", "image de gauche"),
    "vote.right.alt": ("image on the right", "image de droite"),
    "vote.question": ("Which shows this better: {prompt}", "Laquelle montre mieux ceci : {prompt}"),
    "vote.count": ("{done} of {all} pairs voted", "{done} paires sur {all} jugées"),
    "vote.done": ("Every pair of these two models has a vote.", "Toutes les paires de ces deux modèles ont un vote."),
    "vote.none": ("These two have no pair of images in this page.", "Ces deux n'ont pas de paire dans cette page."),
    "vote.hint": (
        "Keys: left and right arrows, arrow down for the same.",
        "Touches : flèches gauche et droite, flèche bas pour pareil.",
    ),
    "vote.tally": ("show the tally", "voir le décompte"),
    "vote.undo": ("take back the last", "reprendre le dernier"),
    "vote.download": ("download as CSV", "télécharger en CSV"),
    "vote.result": (
        "{first}: {wins} · {second}: {losses} · same: {ties}.",
        "{first} : {wins} · {second} : {losses} · pareil : {ties}.",
    ),
    "vote.share": (
        "{first} is preferred in {share} % of {decided} decided votes, 95 % interval {low} to {high} % (Wilson).",
        "{first} est préféré dans {share} % de {decided} votes tranchés, intervalle à 95 % {low} à {high} % (Wilson).",
    ),
    "vote.undecided": ("No vote decides between them yet.", "Aucun vote ne tranche encore."),
}

_END = {
    "cost": ("Cost", "Coût"),
    "claims": ("Claims", "Affirmations"),
    "claims.claim": ("claim", "affirmation"),
    "claims.verdict": ("verdict", "verdict"),
    "claims.effect": ("effect", "effet"),
    "claim.confirmed": ("confirmed", "confirmée"),
    "claim.contradicted": ("contradicted", "contredite"),
    "claim.inconclusive": ("inconclusive", "indécise"),
    "provenance": ("Provenance", "Provenance"),
}

# title and meaning; the English ones are those of the measures themselves
_KINDS_IN_FRENCH = {
    "rung": (
        "échelon",
        "0 inchangé, 1 déplacé, 2 reconnaissable, 3 recouvrant les images réelles, 4 indiscernable d'elles",
    ),
    "times": (
        "distance, en unités du réel",
        "combien de fois plus loin des images réelles mises de côté que ne le sont les images d'entraînement",
    ),
    "skill": (
        "gain",
        "part du chemin de la base (0) aux images réelles passées par son autoencodeur (1), distances sans carré",
    ),
    "right_caption": (
        "bonne légende",
        "part des images qu'un classifieur d'images réelles, qui peut dire aucune, nomme bien ; plancher : le hasard",
    ),
    "told": (
        "distingué du réel",
        "fréquence à laquelle un classifieur distingue généré et réel sur des images nouvelles ; le plancher est réel "
        "contre réel, ou une pièce",
    ),
    "density": (
        "densité",
        "densité des images générées parmi les réelles ; le plancher est d'autres images réelles",
    ),
    "fid": (
        "FID",
        "distance de Fréchet aux images mises de côté ; le plancher est autant d'autres images réelles",
    ),
    "kid": (
        "KID",
        "distance à noyau aux images mises de côté, sans biais ; le plancher est d'autres images réelles",
    ),
    "cmmd": (
        "CMMD",
        "1 000 fois la distance sous un noyau gaussien ; le plancher est d'autres images réelles",
    ),
    "tint": ("teinte", "différence moyenne des canaux de coupes, qui sont grises"),
    "drift": ("dérive du bruit", "changement de la prédiction du bruit, rapporté à l'erreur de la base"),
    "drift_class": ("dérive du bruit, classe", "la même sur le cercle du nom de classe"),
    "drift_related": ("dérive du bruit, proche", "la même sur le cercle des prompts proches"),
    "drift_unrelated": ("dérive du bruit, sans rapport", "la même sur le cercle des prompts sans rapport"),
    "paired": (
        "dérive par paire",
        "distance d'images de même graine, rapportée à celle d'images de base d'autres graines",
    ),
    "prior": ("distance à l'a priori", "distance aux images de base des cercles ; le plancher est base contre base"),
    "leak": (
        "fuite",
        "part des images de prompts sans rapport prises pour le concept, en plus de celle de la base",
    ),
    "saturation": ("saturation gardée", "couleur des images sans rapport, rapportée à celle de la base"),
    "likeness": (
        "classe semblable au concept",
        "cosinus moyen des images de la classe et du concept, moins celui de la base",
    ),
    "copy_auc": (
        "AUC de copie",
        "0,5 : pas plus près des images d'entraînement que les images mises de côté ; 1 : des copies",
    ),
    "flagged": (
        "quasi-copies",
        "part plus proche de l'entraînement que 95 % des images mises de côté ; 5 % attendus",
    ),
    "vendi": ("rapport de Vendi", "nombre effectif d'images différentes, rapporté à autant d'images réelles"),
    "pairwise": (
        "rapport des distances par paire",
        "distance moyenne de deux images d'un prompt, rapportée aux images réelles",
    ),
    "coverage": (
        "couverture",
        "part des images réelles qui ont une voisine générée ; le plancher est d'autres images réelles à leur place",
    ),
    "class_coverage": (
        "couverture des classes",
        "régularité avec laquelle un classifieur d'images réelles nomme ses classes dans les images du nom de classe ; "
        "le plancher est celui de la base",
    ),
}

_ENGLISH_AND_FRENCH = {
    **_PAGE,
    **_VERDICT,
    **_NUMBERS,
    **_IMAGES,
    **_PAIRS,
    **_WHOLE,
    **_VOTE,
    **_END,
    **{f"kind.{name}": (kind.title, _KINDS_IN_FRENCH[name][0]) for name, kind in KINDS.items()},
    **{f"meaning.{name}": (kind.meaning, _KINDS_IN_FRENCH[name][1]) for name, kind in KINDS.items()},
}

# French sets a space before these marks, at which no line may break
LABELS: Mapping[str, tuple[str, str]] = {
    key: (english, re.sub(" (?=[;:%])", "\N{NO-BREAK SPACE}", french))
    for key, (english, french) in _ENGLISH_AND_FRENCH.items()
}
