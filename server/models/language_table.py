"""Codes and English names of languages, from ISO 639 and the Unicode CLDR. The first code of a language is its key.

A macrolanguage shares its line with the member that models mean by it: ``ar`` is ``arb``.
"""

from __future__ import annotations

TABLE = """
aa aar|Afar; ab abk|Abkhazian; ace|Acehnese; acm|Mesopotamian Arabic; acq|Ta'izzi-Adeni Arabic; ae ave|Avestan;
aeb|Tunisian Arabic; af afr|Afrikaans; afb|Gulf Arabic; ajp|South Levantine Arabic; ak aka|Akan; am amh|Amharic;
an arg|Aragonese; ang|Old English; apc|North Levantine Arabic; ar ara arb|Arabic; arq|Algerian Arabic;
ars|Najdi Arabic; ary|Moroccan Arabic; arz|Egyptian Arabic; as asm|Assamese; ast|Asturian; av ava|Avaric; awa|Awadhi;
ay aym ayr|Aymara; az aze azj|Azerbaijani; azb|South Azerbaijani; ba bak|Bashkir; ban|Balinese; bar|Bavarian;
be bel|Belarusian; bem|Bemba; bg bul|Bulgarian; bho|Bhojpuri; bi bis|Bislama; bjn|Banjar; bm bam|Bambara;
bn ben|Bengali; bo bod|Tibetan; br bre|Breton; bs bos|Bosnian; bug|Buginese; bzd|Bribri; ca cat|Catalan;
cbk|Chavacano; ce che|Chechen; ceb|Cebuano; ch cha|Chamorro; cjk|Chokwe; ckb|Central Kurdish; co cos|Corsican;
cr cre|Cree; crh|Crimean Tatar; cs ces|Czech; csb|Kashubian; cu chu|Church Slavic; cv chv|Chuvash; cy cym|Welsh;
da dan|Danish; de deu|German; dik|Southwestern Dinka; dsb|Lower Sorbian; dv div|Divehi; dyu|Dyula; dz dzo|Dzongkha;
ee ewe|Ewe; el ell|Greek; en eng|English; enm|Middle English; eo epo|Esperanto; es spa|Spanish; et est ekk|Estonian;
eu eus|Basque; fa fas pes|Persian; ff ful fuv|Fula; fi fin|Finnish; fj fij|Fijian; fo fao|Faroese; fon|Fon;
fr fra|French; fro|Old French; frr|Northern Frisian; fur|Friulian; fy fry|Western Frisian; ga gle|Irish;
gd gla|Scottish Gaelic; gl glg|Galician; gn grn|Guarani; got|Gothic; grc|Ancient Greek; gsw|Swiss German;
gu guj|Gujarati; gv glv|Manx; ha hau|Hausa; he heb|Hebrew; hi hin|Hindi; hif|Fiji Hindi; hne|Chhattisgarhi;
ho hmo|Hiri Motu; hr hrv|Croatian; hsb|Upper Sorbian; ht hat|Haitian Creole; hu hun|Hungarian; hy hye|Armenian;
hz her|Herero; ia ina|Interlingua; id ind|Indonesian; ie ile|Interlingue; ig ibo|Igbo; ii iii|Sichuan Yi;
ik ipk|Inupiaq; ilo|Iloko; io ido|Ido; is isl|Icelandic; it ita|Italian; iu iku|Inuktitut; ja jpn|Japanese;
jv jav|Javanese; ka kat|Georgian; kab|Kabyle; kac|Kachin; kam|Kamba; kbp|Kabiyè; kea|Kabuverdianu; kg kon|Kongo;
ki kik|Kikuyu; kj kua|Kuanyama; kk kaz|Kazakh; kl kal|Kalaallisut; km khm|Khmer; kmb|Kimbundu; kn kan|Kannada;
ko kor|Korean; kpv|Komi-Zyrian; kr kau knc|Kanuri; krl|Karelian; ks kas|Kashmiri; ksh|Colognian; ku kur kmr|Kurdish;
kv kom|Komi; kw cor|Cornish; ky kir|Kyrgyz; la lat|Latin; lad|Ladino; lb ltz|Luxembourgish; lg lug|Ganda;
li lim|Limburgish; lij|Ligurian; liv|Livonian; lld|Ladin; lmo|Lombard; ln lin|Lingala; lo lao|Lao; lt lit|Lithuanian;
ltg|Latgalian; lu lub|Luba-Katanga; lua|Luba-Lulua; luo|Luo; lus|Mizo; lv lav lvs|Latvian; lzh|Literary Chinese;
mag|Magahi; mai|Maithili; mdf|Moksha; mg mlg plt|Malagasy; mh mah|Marshallese; mi mri|Māori; min|Minangkabau;
mk mkd|Macedonian; ml mal|Malayalam; mn mon khk|Mongolian; mni|Manipuri; mos|Mossi; mr mar|Marathi; ms msa zsm|Malay;
mt mlt|Maltese; mwl|Mirandese; my mya|Burmese; myv|Erzya; na nau|Nauru; nap|Neapolitan; nb nob|Norwegian Bokmål;
nd nde|North Ndebele; nds|Low German; ne nep npi|Nepali; ng ndo|Ndonga; nl nld|Dutch; nn nno|Norwegian Nynorsk;
no nor|Norwegian; non|Old Norse; nr nbl|South Ndebele; nso ns|Northern Sotho; nus|Nuer; nv nav|Navajo; ny nya|Nyanja;
oc oci|Occitan; oj oji|Ojibwa; olo|Livvi; om orm gaz|Oromo; or ori ory|Odia; os oss|Ossetic; pa pan|Punjabi;
pag|Pangasinan; pap|Papiamento; pdc|Pennsylvania German; pi pli|Pali; pl pol|Polish; prs|Dari; ps pus pbt|Pashto;
pt por|Portuguese; qu que quy|Quechua; rm roh|Romansh; rn run|Rundi; ro ron|Romanian; ru rus|Russian;
rw kin|Kinyarwanda; sa san|Sanskrit; sat|Santali; sc srd|Sardinian; scn|Sicilian; sd snd|Sindhi; se sme|Northern Sami;
sg sag|Sango; sh hbs|Serbo-Croatian; shi|Tachelhit; shn|Shan; si sin|Sinhala; sk slk|Slovak; sl slv|Slovenian;
sm smo|Samoan; sma|Southern Sami; smn|Inari Sami; sn sna|Shona; so som|Somali; sq sqi als|Albanian; sr srp|Serbian;
ss ssw|Swati; st sot|Southern Sotho; su sun|Sundanese; sv swe|Swedish; sw swa swh|Swahili; szl|Silesian; ta tam|Tamil;
taq|Tamasheq; te tel|Telugu; tg tgk|Tajik; th tha|Thai; ti tir|Tigrinya; tk tuk|Turkmen; tl tgl fil|Tagalog;
tn tsn|Tswana; to ton|Tongan; tok|Toki Pona; tpi|Tok Pisin; tr tur|Turkish; ts tso|Tsonga; tt tat|Tatar; tum|Tumbuka;
tw twi|Twi; ty tah|Tahitian; tyv|Tuvinian; tzm|Central Atlas Tamazight; udm|Udmurt; ug uig|Uyghur; uk ukr|Ukrainian;
umb|Umbundu; ur urd|Urdu; uz uzb uzn|Uzbek; ve ven|Venda; vec|Venetian; vep|Veps; vi vie|Vietnamese; vo vol|Volapük;
vro|Võro; wa wln|Walloon; war|Waray; wo wol|Wolof; wuu|Wu Chinese; xh xho|Xhosa; yi yid ydd|Yiddish; yo yor|Yoruba;
yue|Cantonese; za zha|Zhuang; zh zho cmn|Chinese; zu zul|Zulu; zza|Zaza
"""

NAMES: dict[str, str] = {}
"""Key -> name."""
KEYS: dict[str, str] = {}
"""Every code -> key."""
CODES: dict[str, list[str]] = {}
"""Key -> codes."""

for _entry in TABLE.split(";"):
    _codes, _, _name = _entry.strip().partition("|")
    _listed = _codes.split()
    NAMES[_listed[0]] = _name
    CODES[_listed[0]] = _listed
    KEYS |= dict.fromkeys(_listed, _listed[0])

SCRIPTS = {
    "Arab": "Arabic",
    "Beng": "Bengali",
    "Cyrl": "Cyrillic",
    "Deva": "Devanagari",
    "Hans": "Simplified",
    "Hant": "Traditional",
    "Latn": "Latin",
    "Tfng": "Tifinagh",
}
"""Names of scripts in which a model may have one language twice."""
