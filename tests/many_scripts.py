"""Texts in many scripts, with everything that a normaliser may change."""

from __future__ import annotations

import random

SENTENCES = """
All human beings are born free and equal in dignity and rights. They're "endowed" with reason -- aren't they?
Alle Menschen sind frei und gleich an Würde und Rechten geboren; die Straße führt über den Fluß.
Tous les êtres humains naissent libres et égaux en dignité et en droits : « l'été », ça, œuvre.
Todos los seres humanos nacen libres e iguales; ¿no es así? ¡Claro que sí, mañana!
Todos os seres humanos nascem livres e iguais; a informação não está à disposição.
Tutti gli esseri umani nascono liberi ed eguali: perché no? Città, virtù.
Wszyscy ludzie rodzą się wolni i równi pod względem swej godności; zażółć gęślą jaźń.
Všichni lidé rodí se svobodní; příliš žluťoučký kůň úpěl ďábelské ódy.
Minden emberi lény szabadon születik; árvíztűrő tükörfúrógép.
Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar. İstanbul'da ılık.
Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm và quyền lợi.
Все люди рождаются свободными и равными; ещё подъезд, съёмка.
Всі люди народжуються вільними; її ґрунт, об'єкт.
Όλοι οι άνθρωποι γεννιούνται ελεύθεροι· ΌΛΟΣ, σοφός;
Բոլոր մարդիկ ծնվում են ազատ։ ყველა ადამიანი იბადება თავისუფალი.
كل الناس يولدون أحرارًا متساوين في الكرامة؛ هل هذا صحيح؟ ١٢٣
همهٔ افراد بشر آزاد به دنیا می‌آیند، ۴۵۶
כָּל בְּנֵי הָאָדָם נוֹלְדוּ בְּנֵי חוֹרִין; הנהר זורם.
सभी मनुष्य जन्म से स्वतन्त्र हैं। क़िताब, ज़रा, १२३
সমস্ত মানুষ স্বাধীনভাবে জন্মগ্রহণ করে। বাড়ি, ড়
எல்லா மனிதர்களும் சுதந்திரமாகவே பிறக்கிறார்கள். కొత్త ಕನ್ನಡ മലയാളം ਪੰਜਾਬੀ ગુજરાતી සිංහල
มนุษย์ทั้งหลายเกิดมามีอิสระ น้ำ ทำ และเสมอภาคกัน ມະນຸດ မြန်မာ ខ្មែរ བོད་
人人生而自由，在尊严和权利上一律平等。「你好」，世界！１２３ＡＢＣ
人人生而自由，在尊嚴和權利上一律平等。
すべての人間は、生まれながらにして自由であり、ｶﾞｷﾞｸﾞ ﾊﾟﾋﾟ がぎぐ ①②③ ㍿㌔
모든 인간은 태어날 때부터 자유로우며, 한글 각 ㅏㅑ
😀🚀 👨‍👩‍👧 ❤️ 🇩🇪 👍🏽 #️⃣ ½ ² ™ ﬁ ﬂ ℃ № … ‥ “quoted” ‘single’ — – ‐ ·
ሰዎች ሁሉ ነጻ ሆነው ይወለዳሉ። ᠮᠣᠩᠭᠣᠯ ᏣᎳᎩ ⵜⵉⴼⵉⵏⴰⵖ
\t tabs\tand   many    spaces\u00a0here\u3000there\u2003\u2009end\u200b\u200d\ufeff \u2028next\u2029
def f(x): return {'a': [1, 2.5e-3], "b": x**2}  # </s> <unk> <pad> <s> >>fra<< __fr__ ▁under ▁ line▁
""".strip("\n").split("\n")
RANGES = (
    *((0x20, 0x7E),) * 6, (0x00, 0x1F), (0x7F, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x300, 0x36F), (0x370, 0x3FF),
    (0x400, 0x52F), (0x530, 0x58F), (0x590, 0x5FF), (0x600, 0x6FF), (0x900, 0x97F), (0x980, 0x9FF), (0xA00, 0xAFF),
    (0xB80, 0xBFF), (0xE00, 0xE7F), (0xE80, 0xEFF), (0xF00, 0xFFF), (0x1000, 0x109F), (0x10A0, 0x10FF),
    (0x1100, 0x11FF), (0x1200, 0x137F), (0x1780, 0x17FF), (0x1E00, 0x1EFF), (0x1F00, 0x1FFF), (0x2000, 0x206F),
    (0x2070, 0x209F), (0x20A0, 0x214F), (0x2150, 0x218F), (0x2190, 0x22FF), (0x2460, 0x24FF), (0x2580, 0x259F),
    (0x3000, 0x303F), (0x3040, 0x30FF), (0x3130, 0x318F), (0x3200, 0x33FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3),
    (0xE000, 0xE010), (0xF900, 0xFAFF), (0xFB00, 0xFB4F), (0xFB50, 0xFDCF), (0xFDF0, 0xFDFF), (0xFE00, 0xFE0F),
    (0xFE20, 0xFE6F), (0xFE70, 0xFEFF), (0xFF00, 0xFFEF), (0xFFF9, 0xFFFD), (0x1D400, 0x1D7FF), (0x1F1E6, 0x1F1FF),
    (0x1F300, 0x1F6FF), (0x20000, 0x2A6DF), (0xE0100, 0xE01EF),
)  # fmt: skip


def random_texts(number: int, seed: int) -> list[str]:
    """Sentences, parts of them, runs of one script, mixtures of all, spaces of every kind, repetitions."""
    draw = random.Random(seed)
    return [_text(draw) for _ in range(number)]


def _text(draw: random.Random) -> str:
    parts = [
        draw.choice((_sentence, _part, _run, _mixture, _spaces, _repetition))(draw) for _ in range(draw.randint(1, 4))
    ]
    return draw.choice(("", " ")).join(parts)


def _sentence(draw: random.Random) -> str:
    return draw.choice(SENTENCES)


def _part(draw: random.Random) -> str:
    sentence = draw.choice(SENTENCES)
    start = draw.randrange(len(sentence))
    return sentence[start : start + draw.randint(1, 40)]


def _run(draw: random.Random) -> str:
    first, last = draw.choice(RANGES)
    return "".join(chr(draw.randint(first, last)) for _ in range(draw.randint(1, 20)))


def _mixture(draw: random.Random) -> str:
    return "".join(chr(draw.randint(*draw.choice(RANGES))) for _ in range(draw.randint(1, 12)))


def _spaces(draw: random.Random) -> str:
    return "".join(
        draw.choice(" \t\n\r\u00a0\u2002\u2009\u200a\u200b\u3000\u0085\u2028\u1680▁") for _ in range(draw.randint(1, 5))
    )


def _repetition(draw: random.Random) -> str:
    return _part(draw)[: draw.randint(1, 3)] * draw.randint(2, 30)
