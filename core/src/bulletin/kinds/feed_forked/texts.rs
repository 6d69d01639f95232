//! Human-readable texts of a `feed-forked` bulletin, in the conference's languages.

use crate::follow::EquivocationClaims;
use crate::proto;

/// Returns the texts for this form of evidence.
pub(super) fn of(claims: &EquivocationClaims) -> Vec<proto::Text> {
    let [smaller, _] = claims.checkpoints();
    let feed = &smaller.feed;
    let messages = match claims {
        EquivocationClaims::Trees(trees) => {
            let size = trees.smaller.size;
            [
                (
                    format!("للسجلّ {feed} تاريخان يفترقان قبل القيد {size}"),
                    "وقّع مفتاح السجلّ شجرتين لا تمتدّ إحداهما من الأخرى: نُسخت الآلة، أو استُعيدت نسخة قديمة، أو سُرق المفتاح. الدليل مرفق.",
                ),
                (
                    format!("Le journal {feed} a deux histoires, qui diffèrent avant l'entrée {size}"),
                    "La clé du journal a signé deux arbres dont aucun ne prolonge l'autre : une machine fut copiée, une sauvegarde continuée, ou la clé volée. La preuve est jointe.",
                ),
                (
                    format!("The feed {feed} has two histories, which differ before entry {size}"),
                    "The feed's key has signed two trees of which neither extends the other: a machine was copied, a backup was continued, or the key is stolen. The evidence is enclosed.",
                ),
            ]
        }
        EquivocationClaims::Entries(entries) => {
            let index = entries.index;
            [
                (
                    format!("للسجلّ {feed} تاريخان: له قيدان في الموضع {index}"),
                    "وقّع مفتاح السجلّ قيدين مختلفين في موضع واحد: نُسخت الآلة، أو استُعيدت نسخة قديمة، أو سُرق المفتاح. الدليل مرفق.",
                ),
                (
                    format!("Le journal {feed} a deux histoires : deux entrées à la place {index}"),
                    "La clé du journal a signé deux entrées différentes pour une même place : une machine fut copiée, une sauvegarde continuée, ou la clé volée. La preuve est jointe.",
                ),
                (
                    format!("The feed {feed} has two histories: two entries at index {index}"),
                    "The feed's key has signed two different entries for one place: a machine was copied, a backup was continued, or the key is stolen. The evidence is enclosed.",
                ),
            ]
        }
    };
    let instructions = [
        format!("لا يُتابَع السجلّ حتى يقرّر المشغّل. للتحقق: barid feed evidence {feed} ثم barid verify."),
        format!(
            "Le journal n'est plus suivi tant qu'un opérateur n'a pas décidé. Vérifier : barid feed evidence {feed}, puis barid verify."
        ),
        format!(
            "The feed is not followed until an operator decides. To verify: barid feed evidence {feed}, then barid verify."
        ),
    ];
    let texts = ["ar", "fr", "en"].into_iter().zip(messages).zip(instructions);
    let text = |((language, (headline, description)), instruction): ((&str, (String, &str)), String)| proto::Text {
        language: language.to_owned(),
        headline,
        description: description.to_owned(),
        instruction,
    };
    texts.map(text).collect()
}
