"""A short list of words and phrases that are abuse in nearly every context; in lower case.

Left out on purpose: what is a name, an animal, a part of the body or a city somewhere else too, mild words, and words
of sex and medicine, which are no abuse. Words are parted by spaces, phrases by bars.
"""

PROFANITY = """
fuck fucks fucked fucker fuckers fucking fuckin fuckhead fuckface motherfucker motherfuckers motherfucking bullshit
cunt cunts putain merde joder coño porra vaffanculo cazzo kurwa pierdol pierdolę jebać scheiße scheisse
блядь блять ебать заебал нахуй похуй хуй хуйня пиздец siktir amk
"""
INSULTS = """
asshole assholes arsehole arseholes dickhead dickheads shithead shitheads wanker wankers bitch bitches bitchy whore
whores slut sluts slutty twat twats douchebag douchebags dipshit dumbass dumbfuck scumbag scumbags cocksucker
cocksuckers arschloch arschlöcher wichser hurensohn hurensöhne fotze schlampe missgeburt drecksau miststück
connard connards connasse salope salopes enculé enculés pétasse
gilipollas cabrón cabrones pendejo pendejos hijueputa malparido stronzo stronza stronzi coglione coglioni puttana
arrombado arrombada cuzão klootzak klootzakken kankerlijer teringlijer skurwysyn skurwiel pizda
сука мудак мудаки ублюдок долбоёб долбоеб пизда шлюха madarchod bhenchod bhosdike chutiya 개새끼 씨발 시발놈
"""
SLURS = """
nigger niggers nigga niggas faggot faggots kike kikes wetback wetbacks gook gooks raghead ragheads towelhead
towelheads shemale shemales trannies subhuman subhumans kanake kanaken bougnoule bougnoules sudaca sudacas
maricón maricones frocio frocia froci viado пидор пидорас чурка
"""
THREATS = """
kill yourself|kys|go die|hang yourself|i will kill you|i'll kill you|i am going to kill you|i'm going to kill you
i hope you die|hope you get cancer|i will rape you|slit your throat|ich bring dich um|va crever
te voy a matar|ti ammazzo|vou te matar|я тебя убью|сдохни
"""
INSULTING_PHRASES = """
son of a bitch|piece of shit|you retard|you fag|fucking retard|suck my dick|verpiss dich|fick dich|ta gueule
fils de pute|nique ta mère|va te faire foutre|hijo de puta|hija de puta|chinga tu madre|vete a la mierda
figlio di puttana|filho da puta|filha da puta|vai se foder|vai tomar no cu|orospu çocuğu|иди нахуй|пошёл нахуй
пошел нахуй|krijg kanker|pierdol się|spierdalaj
"""
UNSPACED = """
傻逼 傻屄 操你妈 你妈逼 狗杂种 狗娘养 臭婊子 死全家 脑残货 滚你妈 幹你娘 黑鬼 支那人 死基佬
クソ野郎 くそったれ 死ねよ くたばれ
"""
"""For scripts that put no space between words."""
